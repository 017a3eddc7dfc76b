"""The log probabilities of one prompt's tokens, gathered while its chunks are computed.

A chunk that is computed again, after a preemption, replaces what is known of its tokens.
"""

from libs.contracts.online import ScoredToken, TokenLogprobs
from libs.engine.requests import SequenceRequest
from libs.engine.text_stream import Detokenizer
from libs.engine.token_scores import ScoreRequest


class PromptScores:
    """What is known so far of one open sequence's prompt."""

    def __init__(self, request: SequenceRequest, *, detokenizer: Detokenizer) -> None:
        assert request.sampling.logprobs is not None
        self._token_ids = request.prompt_token_ids
        self._best = request.sampling.logprobs
        first = self._token_ids[0]
        given = ScoredToken(token_id=first, text=detokenizer.decode([first]), logprob=0.0)
        self._scores: list[TokenLogprobs | None] = [None] * len(self._token_ids)
        self._scores[0] = TokenLogprobs(chosen=given)

    def score_request(self, position: int, *, row: int) -> ScoreRequest:
        """Return what to ask of this row of the logits."""
        return ScoreRequest(row=row, token_id=self._token_ids[position], best=self._best)

    def take(self, position: int, scores: TokenLogprobs) -> None:
        """Note the scores of the token at this position."""
        self._scores[position] = scores

    def whole(self) -> tuple[TokenLogprobs, ...]:
        """Return the scores of all tokens; every chunk has been computed."""
        known = tuple(scores for scores in self._scores if scores is not None)
        assert len(known) == len(self._scores), "a chunk of the prompt was not scored"
        return known
