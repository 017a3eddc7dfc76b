"""A sequence between `add` and its end, as the scheduler follows it."""

from dataclasses import dataclass, field

from libs.engine.requests import SequenceRequest
from libs.engine.steps import FinishReason, SampledToken


@dataclass(slots=True, kw_only=True, eq=False)
class TrackedSequence:
    """Its tokens, how many of them have KV, and in which blocks."""

    request: SequenceRequest
    arrival: int
    rank: int
    """Lower is served first."""
    gives_way: bool
    """Whether it is offline, under a policy that serves online sequences first."""
    added_at_ns: int
    token_ids: list[int]
    """Prompt and generated tokens; the last one's KV is never computed yet."""
    tokens_computed: int = 0
    tokens_computed_ever: int = 0
    """The most that were computed at any time: what goes beyond is no repetition."""
    block_ids: list[int] = field(default_factory=list)
    """Empty exactly while it waits."""
    blocks_published: int = 0
    """Blocks of block_ids, from the first, that the pool knows by hash."""
    block_hashes: list[int] = field(default_factory=list)
    """Of the first full blocks of token_ids, as far as they were needed."""
    last_token_at_ns: int | None = None
    """When the latest token was generated here."""
    is_opened: bool = False
    is_aborted: bool = False
    is_preempted: bool = False
    """Whether it ran and lost its blocks; it goes before those that never ran."""
    is_held_back: bool = False
    """Not to be admitted: its KV is on the way here."""

    @property
    def sequence_id(self) -> str:
        """The name that the request gave it."""
        return self.request.sequence_id

    @property
    def is_running(self) -> bool:
        """Whether it has blocks; one that has none waits."""
        return bool(self.block_ids)

    @property
    def tokens_missing(self) -> int:
        """Tokens without KV; at least 1."""
        return len(self.token_ids) - self.tokens_computed

    @property
    def output_index(self) -> int:
        """Index among the generated tokens of the one that comes next."""
        return len(self.token_ids) - len(self.request.prompt_token_ids)

    @property
    def is_prompt_scored(self) -> bool:
        """Whether the prompt's log probabilities are still owed."""
        return self.request.needs_prompt_scores and self.output_index == 0

    def tokens_scored(self, tokens: int) -> int:
        """Count those of the next tokens that have a prompt token to score after them."""
        if not self.is_prompt_scored:
            return 0
        # All of the prompt is owed a score but its first token.
        return min(tokens, self.tokens_missing - 1)

    def order(self) -> tuple[int, int]:
        """Sort key of service: lower rank first, then arrival."""
        return (self.rank, self.arrival)

    def next_token_due_ns(self, *, ttft_slo_ns: int, tbt_slo_ns: int) -> int:
        """Return when the next token is due."""
        if self.last_token_at_ns is None:
            return self.added_at_ns + ttft_slo_ns
        return self.last_token_at_ns + tbt_slo_ns

    def finish_reason(
        self, token: SampledToken, *, eos_token_ids: frozenset[int], context_tokens_max: int
    ) -> FinishReason | None:
        """Say why the sequence ends with this token, its last so far; None: it goes on."""
        stop = self.request.stop
        if token.is_cut_off:
            return "length"
        if token.is_stop_matched:
            return "stop"
        index = self.output_index - 1
        if stop.is_stop_token(token.token_id, output_index=index, eos_token_ids=eos_token_ids):
            return "stop"
        if self.output_index >= stop.max_tokens or len(self.token_ids) >= context_tokens_max:
            return "length"
        return None
