"""What a sequence asks of the engine, and the one test of whether it can be admitted at all."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingOptions:
    """How the next token is chosen from the logits."""

    temperature: float = 0.0
    """Divides the logits; 0 chooses the best token and ignores the other fields."""
    top_k: int | None = None
    """Only the k best tokens stay; None keeps all."""
    top_p: float = 1.0
    """Only the smallest set of best tokens whose probability reaches top_p stays; in (0, 1]."""
    seed: int = 0
    """Together with the index of the generated token, it alone determines the noise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StopOptions:
    """When a sequence ends. The model's own end-of-sequence ids are the engine's, not here."""

    max_tokens: int
    """Generated tokens at most, those of earlier placements included; at least 1."""
    stop_strings: tuple[str, ...] = ()
    """The text ends before the first of these; none may be empty."""
    stop_token_ids: frozenset[int] = frozenset()
    """The sequence ends with one of these, whose own text is not emitted."""
    ignore_eos: bool = False
    """Go on past the model's end-of-sequence ids (benchmarks)."""

    def is_stop_token(self, token_id: int, *, eos_token_ids: frozenset[int]) -> bool:
        """Whether generating this token ends the sequence."""
        if token_id in self.stop_token_ids:
            return True
        return not self.ignore_eos and token_id in eos_token_ids


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceRequest:
    """One sequence to continue, fresh or resumed from another placement."""

    sequence_id: str
    """Unique among the sequences that this engine knows at a time."""
    prompt_token_ids: tuple[int, ...]
    generated_token_ids: tuple[int, ...] = ()
    """Tokens generated elsewhere before; they are recomputed and never emitted again."""
    sampling: SamplingOptions
    stop: StopOptions
    priority: int = 0
    """The higher value is admitted first and preempted last; equal ones go by arrival."""
    cache_salt: str = ""
    """Sequences share cached prefixes only within one salt (one tenant)."""

    @property
    def tokens_known(self) -> int:
        """Tokens the sequence starts with: prompt and those generated before."""
        return len(self.prompt_token_ids) + len(self.generated_token_ids)


def refuse_reason(
    request: SequenceRequest,
    *,
    context_tokens_max: int,
    vocabulary_size: int,
    blocks_total: int,
    block_tokens: int,
) -> str | None:
    """Say in one sentence why this engine can never run the sequence, or None if it can.

    A request that is not refused finishes whatever else runs: alone it fits the block pool.
    """
    if not request.prompt_token_ids:
        return "the prompt is empty"
    capacity_tokens = min(context_tokens_max, blocks_total * block_tokens)
    if request.tokens_known >= capacity_tokens:
        return (
            f"{request.tokens_known} tokens leave no room to generate: "
            f"this model's context is {capacity_tokens} tokens"
        )
    return (
        _token_ids_refusal(request, vocabulary_size=vocabulary_size)
        or _stop_refusal(request)
        or _sampling_refusal(request.sampling)
    )


def _token_ids_refusal(request: SequenceRequest, *, vocabulary_size: int) -> str | None:
    for token_id in (*request.prompt_token_ids, *request.generated_token_ids):
        if not 0 <= token_id < vocabulary_size:
            return f"token id {token_id} is outside the vocabulary of {vocabulary_size}"
    return None


def _stop_refusal(request: SequenceRequest) -> str | None:
    if request.stop.max_tokens < 1:
        return f"max_tokens is {request.stop.max_tokens}: at least 1 is needed"
    if len(request.generated_token_ids) >= request.stop.max_tokens:
        return "max_tokens are generated already"
    if "" in request.stop.stop_strings:
        return "a stop string is empty"
    return None


def _sampling_refusal(sampling: SamplingOptions) -> str | None:
    if not 0.0 <= sampling.temperature <= 1e6:
        return f"temperature is {sampling.temperature}: it must lie between 0 and 1e6"
    if not 0.0 < sampling.top_p <= 1.0:
        return f"top_p is {sampling.top_p}: it must lie above 0 and at most at 1"
    if sampling.top_k is not None and sampling.top_k < 1:
        return f"top_k is {sampling.top_k}: at least 1 is needed, or none"
    return None
