"""The bounds of one engine's scheduler."""

from dataclasses import dataclass, field

from libs.engine.scheduling.coserve import CoserveOptions
from libs.kernel.core import require


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerOptions:
    """The bounds of one engine."""

    step_tokens_max: int
    """Tokens computed in one step at most; bounds how long a decode waits for a prefill. At
    least sequences_max, so that every running sequence advances in every step."""
    sequences_max: int
    """Sequences running at a time at most; more of them wait."""
    block_tokens: int
    """Tokens per KV block; a prefix is shared in whole blocks."""
    blocks_total: int
    """KV blocks of the pool."""
    context_tokens_max: int
    """Prompt and generated tokens of one sequence at most; fits the pool."""
    eos_token_ids: frozenset[int]
    """Tokens that end a sequence unless it ignores them."""
    enable_prefix_cache: bool = True
    """Whether full blocks are kept for other sequences after their own has ended."""
    layers: int | None = None
    """Layers of the model, where its runner can give a step up between them; None: a step runs to
    its end."""
    coserve: CoserveOptions = field(default_factory=CoserveOptions)
    """How online and offline sequences share the engine."""

    def __post_init__(self) -> None:
        require(self.sequences_max > 0, "sequences_max must be positive")
        require(
            self.step_tokens_max >= self.sequences_max,
            "step_tokens_max must be at least sequences_max",
        )
        require(self.layers is None or self.layers > 0, "layers must be positive")
        require(
            2 <= self.context_tokens_max <= self.blocks_total * self.block_tokens,
            "context_tokens_max must be at least 2 and fit the block pool",
        )

    @property
    def step_tokens(self) -> int:
        """Tokens of one step at most, under this policy."""
        coserve = self.coserve
        if not coserve.rules.has_chunk:
            return self.step_tokens_max
        return max(self.sequences_max, min(coserve.chunk_tokens, self.step_tokens_max))
