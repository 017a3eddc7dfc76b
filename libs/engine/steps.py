"""What passes between the scheduler, the runner and their caller at every engine step.

schedule() -> StepPlan        pure: which tokens of which sequences, in which KV blocks
run(StepPlan) -> StepResult   torch: one forward pass, sampling, text
account(StepResult)           pure: grows the sequences, ends them, returns TokenEmitted
"""

from dataclasses import dataclass
from typing import Literal

from libs.contracts.online import TokenLogprobs
from libs.engine.requests import SequenceRequest

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanEntry:
    """One sequence's share of a step."""

    sequence_id: str
    token_ids: tuple[int, ...]
    """Tokens whose KV is computed and written in this step; never empty."""
    start_position: int
    """Position of the first of them; KV of all positions before lies in the block table."""
    block_table: tuple[int, ...]
    """Blocks of positions 0 ..; exactly enough for start_position + len(token_ids). Blocks
    that end at or before start_position may be shared with other sequences and are only read."""
    is_sampling: bool
    """Whether token_ids reach the sequence's last token, so that a new one is sampled."""
    output_index: int
    """Index among the generated tokens of the one sampled next: the position of its noise."""
    tokens_scored: int = 0
    """So many of token_ids, from the first, have to say how likely the prompt token after each of
    them is: their logits are wanted, before those of the row that is sampled."""

    @property
    def logit_rows(self) -> int:
        """Rows of logits that the entry brings forth: of `tokens_scored`, then the sampled one."""
        return self.tokens_scored + self.is_sampling

    @property
    def scored_positions(self) -> range:
        """Positions of the prompt tokens that are scored."""
        first = self.start_position + 1
        return range(first, first + self.tokens_scored)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPlan:
    """One step's work, as data. Entries are of distinct sequences, decodes before prefills."""

    step_id: int
    """Grows by one with every plan of this engine."""
    entries: tuple[PlanEntry, ...]
    """Never empty."""
    opened: tuple[SequenceRequest, ...]
    """Sequences that appear for the first time; each is opened exactly once before its first
    entry, and a preempted one is not opened again."""
    closed: tuple[str, ...]
    """Sequences opened by earlier plans that ended since. To be applied before `opened`: an
    id may come back as another sequence."""
    layers_between_safepoints: int | None = None
    """The step may be given up before every so many layers, if its yield signal is set by then;
    None: it runs to its end. Only a step of offline sequences alone has safepoints."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledToken:
    """The token that one sampling entry brought forth, with both ways its text may go on."""

    sequence_id: str
    token_id: int
    text: str
    """Text that is certain now; may be empty and may lag behind the tokens."""
    text_if_last: str
    """The text to emit instead if the sequence ends with this token: flushes what was held
    back, and leaves out the text of the token itself if it is a stop token."""
    is_stop_matched: bool
    """Whether a stop string is complete, before which `text` then ends, or the answer's schema
    allows nothing more."""
    is_cut_off: bool = False
    """Whether the sequence must end here, although its answer's schema asks for more."""
    logprobs: TokenLogprobs | None = None
    """Exactly where the request asks for them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """What one step brought forth: one token per sampling entry, in the order of the plan.

    A step that yielded brought forth nothing: no token, and no KV that may be relied upon. What it
    wrote is written again when its entries are planned anew.
    """

    step_id: int
    sampled: tuple[SampledToken, ...]
    is_yielded: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenEmitted:
    """One token of one sequence, final: never changed, repeated or taken back."""

    sequence_id: str
    index: int
    """Counts the generated tokens from 0; a resumed sequence goes on where it stopped."""
    token_id: int
    text: str
    finish_reason: FinishReason | None
    """Not None exactly on the sequence's last token."""
    logprobs: TokenLogprobs | None = None
    """Exactly where the request asks for them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLoad:
    """How full the engine is, for heartbeats and routing."""

    blocks_total: int
    blocks_free: int
    """Blocks that can be had without preempting anyone: empty ones and cached, unused ones."""
    sequences_running: int
    sequences_waiting: int
    tokens_waiting: int
    """Tokens not yet computed of all sequences, waiting or in prefill."""
    offline_running: int = 0
    """Of sequences_running, those that are offline; and so on."""
    offline_waiting: int = 0
    offline_tokens_waiting: int = 0
    blocks_reserved_for_online: int = 0
    """Of blocks_free, those that offline sequences do not take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OfflineBlocks:
    """What evicting all running offline sequences would cost."""

    blocks_computed: int
    """Blocks with KV of theirs."""
    blocks_stored: int
    """Those of them that can be brought back by copying."""
