"""Decides which tokens of which sequences each engine step computes."""

from dataclasses import dataclass

from libs.engine.requests import SequenceRequest
from libs.engine.steps import EngineLoad, StepPlan, StepResult, TokenEmitted


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerOptions:
    """The bounds of one engine."""

    step_tokens_max: int
    """Tokens computed in one step at most; bounds the time a decode waits for a prefill."""
    sequences_max: int
    """Sequences running at a time at most."""
    block_tokens: int
    blocks_total: int
    context_tokens_max: int
    """Prompt and generated tokens of one sequence at most; fits the block pool."""
    eos_token_ids: frozenset[int]
    enable_prefix_cache: bool = True


class Scheduler:
    """Continuous batching over one block pool."""

    def __init__(self, options: SchedulerOptions) -> None: ...

    def add(self, request: SequenceRequest) -> None: ...

    def abort(self, sequence_id: str) -> bool: ...

    def schedule(self) -> StepPlan | None: ...

    def account(self, result: StepResult) -> tuple[TokenEmitted, ...]: ...

    def load(self) -> EngineLoad: ...

    def prefix_hashes(self, limit: int) -> tuple[int, ...]: ...

    def check_invariants(self) -> None: ...
