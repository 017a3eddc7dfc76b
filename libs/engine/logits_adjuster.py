"""Changes a sequence's logits by what it was asked for and by the tokens it has so far.

All of it is a function of (prompt, generated tokens, options), so that a sequence resumed
elsewhere goes on with the same adjustments. In this order (see `sampling` for the whole):

1. min_tokens: what would end the sequence is impossible before that many tokens.
2. logit_bias: added to the logits of single tokens.
3. repetition_penalty: the logits of tokens in prompt or answer are divided by it where positive
   and multiplied where negative. Source: Keskar et al., "CTRL", section 4.1.
4. frequency_penalty times a token's count in the answer, and presence_penalty for each token
   that is in the answer, are subtracted. Source: OpenAI's API reference.
5. The answer's schema: what it does not allow next is impossible; what would end the sequence is
   possible exactly where the answer may end, even before min_tokens where nothing else is.

Legend: V vocabulary.
"""

import torch

from libs.engine.grammar import AnswerGrammar
from libs.engine.requests import SamplingOptions, SequenceRequest


class LogitsAdjuster:
    """One open sequence's options that change its logits, and its tokens."""

    def __init__(
        self,
        request: SequenceRequest,
        *,
        eos_token_ids: frozenset[int],
        vocabulary_size: int,
        device: torch.device,
        grammar: AnswerGrammar | None = None,
    ) -> None:
        """Start from the request's tokens, those generated elsewhere included; so does `grammar`,
        which is the adjuster's own from now on."""
        self._options = request.sampling
        self._grammar = grammar
        self._min_tokens = request.stop.min_tokens
        self._stop_ids = torch.tensor(
            sorted(request.stop.ending_token_ids(eos_token_ids)), dtype=torch.int64, device=device
        )
        bias = request.sampling.logit_bias
        self._bias_ids = torch.tensor([token_id for token_id, _ in bias], device=device)
        self._bias_values = torch.tensor([value for _, value in bias], device=device)
        self._has_penalties = has_penalties(request.sampling)
        self._counts_V = torch.zeros(0)
        self._is_seen_V = torch.zeros(0, dtype=torch.bool)
        if self._has_penalties:
            self._counts_V = torch.zeros(vocabulary_size, device=device)
            self._is_seen_V = torch.zeros(vocabulary_size, dtype=torch.bool, device=device)
            self._is_seen_V[torch.tensor(request.prompt_token_ids, device=device)] = True
            for token_id in request.generated_token_ids:
                self.push(token_id)

    def push(self, token_id: int) -> None:
        """Take in the token generated next."""
        if self._has_penalties:
            self._counts_V[token_id] += 1
            self._is_seen_V[token_id] = True

    def adjust_(self, logits_V: torch.Tensor, *, output_index: int) -> None:
        """Change the logits, float32, in place; `output_index` is that of the token to come."""
        if output_index < self._min_tokens:
            logits_V[self._stop_ids] = float("-inf")
        if self._options.logit_bias:
            logits_V[self._bias_ids] += self._bias_values
        if self._has_penalties:
            self._penalise_(logits_V)
        if self._grammar is not None:
            self._hold_to_(self._grammar, logits_V)

    def _hold_to_(self, grammar: AnswerGrammar, logits_V: torch.Tensor) -> None:
        spelt_V = torch.frombuffer(grammar.allowed_V(), dtype=torch.uint8)
        allowed_V = (spelt_V[: len(logits_V)] > 0).to(logits_V.device)
        # A broken grammar ends the sequence, best with a token that has no text.
        allowed_V[self._stop_ids] = grammar.may_end or grammar.is_broken
        logits_V.masked_fill_(~allowed_V, float("-inf"))
        if logits_V.max() == float("-inf"):
            logits_V[allowed_V] = 0.0

    def _penalise_(self, logits_V: torch.Tensor) -> None:
        options = self._options
        if options.repetition_penalty != 1.0:
            penalty = options.repetition_penalty
            penalised_V = torch.where(logits_V > 0, logits_V / penalty, logits_V * penalty)
            torch.where(self._is_seen_V, penalised_V, logits_V, out=logits_V)
        if options.frequency_penalty != 0.0:
            logits_V -= options.frequency_penalty * self._counts_V
        if options.presence_penalty != 0.0:
            logits_V -= options.presence_penalty * (self._counts_V > 0)


def has_penalties(options: SamplingOptions) -> bool:
    """Whether the tokens so far change the logits."""
    return (
        options.repetition_penalty != 1.0
        or options.presence_penalty != 0.0
        or options.frequency_penalty != 0.0
    )


def needs_adjuster(request: SequenceRequest) -> bool:
    """Whether any option of the request changes logits; most do not, and cost nothing then."""
    return (
        len(request.generated_token_ids) < request.stop.min_tokens
        or bool(request.sampling.logit_bias)
        or request.answer_schema is not None
        or has_penalties(request.sampling)
    )
