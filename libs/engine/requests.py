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
    min_p: float = 0.0
    """Only tokens with at least this share of the best one's probability stay; in 0..1."""
    repetition_penalty: float = 1.0
    """Above 0; makes tokens of prompt and answer less likely above 1, more likely below."""
    presence_penalty: float = 0.0
    """Subtracted from the logits of tokens that are in the answer."""
    frequency_penalty: float = 0.0
    """Subtracted from a token's logit for each time that it is in the answer."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """(token id, what is added to its logit), each id once."""
    logprobs: int | None = None
    """Report the log probability of each token and of this many best ones; None: report none."""
    prompt_logprobs: bool = False
    """Report those of the prompt as well, with the first token; needs `logprobs`."""


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
    min_tokens: int = 0
    """So many tokens are generated before one may end the sequence. A stop string counts only if
    it begins in text that is certain after them."""

    def ending_token_ids(self, eos_token_ids: frozenset[int]) -> frozenset[int]:
        """Return the tokens that end the sequence, once it may end."""
        return self.stop_token_ids if self.ignore_eos else self.stop_token_ids | eos_token_ids

    def is_stop_token(
        self, token_id: int, *, output_index: int, eos_token_ids: frozenset[int]
    ) -> bool:
        """Whether this token, generated at this index, ends the sequence."""
        if output_index < self.min_tokens:
            return False
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
    """The higher value is admitted first and preempted last; equal ones go by arrival. Below 0 is
    offline work: it has no SLO and yields to what has one."""
    tenant: str = ""
    """On whose behalf; tenants share fairly what offline work gets."""
    answer_schema: str | None = None
    """The JSON schema, as text, that the answer is held to; one that `grammar` does not refuse."""
    cache_salt: str = ""
    """Sequences share cached prefixes only within one salt (one tenant)."""

    @property
    def needs_prompt_scores(self) -> bool:
        """Whether the whole prompt must be computed here, for its log probabilities."""
        return self.sampling.prompt_logprobs and not self.generated_token_ids

    @property
    def is_offline(self) -> bool:
        """Whether it yields to all that is not."""
        return self.priority < 0

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
        or _adjustment_refusal(request.sampling, vocabulary_size=vocabulary_size)
    )


def _token_ids_refusal(request: SequenceRequest, *, vocabulary_size: int) -> str | None:
    for token_id in (*request.prompt_token_ids, *request.generated_token_ids):
        if not 0 <= token_id < vocabulary_size:
            return f"token id {token_id} is outside the vocabulary of {vocabulary_size}"
    for token_id in sorted(request.stop.stop_token_ids):
        if not 0 <= token_id < vocabulary_size:
            return (
                f"stop_token_ids: token id {token_id} is outside the vocabulary "
                f"of {vocabulary_size}"
            )
    return None


def _stop_refusal(request: SequenceRequest) -> str | None:
    if request.stop.max_tokens < 1:
        return f"max_tokens is {request.stop.max_tokens}: at least 1 is needed"
    if not 0 <= request.stop.min_tokens <= request.stop.max_tokens:
        return (
            f"min_tokens is {request.stop.min_tokens}: it must lie between 0 and max_tokens, "
            f"{request.stop.max_tokens}"
        )
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
    if not 0.0 <= sampling.min_p <= 1.0:
        return f"min_p is {sampling.min_p}: it must lie between 0 and 1"
    if sampling.logprobs is not None and sampling.logprobs < 0:
        return f"logprobs is {sampling.logprobs}: it must not be negative"
    if sampling.prompt_logprobs and sampling.logprobs is None:
        return "prompt_logprobs needs logprobs"
    return None


def _adjustment_refusal(sampling: SamplingOptions, *, vocabulary_size: int) -> str | None:
    if not 0.0 < sampling.repetition_penalty <= 1e6:
        return (
            f"repetition_penalty is {sampling.repetition_penalty}: it must lie above 0 and at "
            "most at 1e6"
        )
    for name, value in (
        ("presence_penalty", sampling.presence_penalty),
        ("frequency_penalty", sampling.frequency_penalty),
    ):
        if not -1e6 <= value <= 1e6:
            return f"{name} is {value}: it must lie between -1e6 and 1e6"
    for token_id, value in sampling.logit_bias:
        if not 0 <= token_id < vocabulary_size:
            return f"logit_bias: token id {token_id} is outside the vocabulary of {vocabulary_size}"
        if not -1e6 <= value <= 1e6:
            return f"logit_bias of token id {token_id} is {value}: it must be a finite number"
    return None
