"""Log probabilities of tokens under the model's own distribution, before anything changes it.

Legend: R rows, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from libs.contracts.online import ScoredToken, TokenLogprobs
from libs.engine.text_stream import Detokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreRequest:
    """One row whose scores are wanted."""

    row: int
    """Of the logits."""
    token_id: int
    """The token that was chosen."""
    best: int
    """How many of the best tokens are wanted beside it."""


def score_tokens(
    logits_RV: torch.Tensor, requests: Sequence[ScoreRequest], *, detokenizer: Detokenizer
) -> list[TokenLogprobs]:
    """Return the scores of each request, the best tokens first."""
    if not requests:
        return []
    rows = torch.tensor([request.row for request in requests], device=logits_RV.device)
    logprobs_RV = logits_RV.index_select(0, rows).float().log_softmax(dim=-1)
    best_wanted = min(max(request.best for request in requests), logprobs_RV.shape[1])
    best_values, best_ids = (part.tolist() for part in logprobs_RV.topk(best_wanted, dim=-1))
    chosen_ids = torch.tensor([[r.token_id] for r in requests], device=logits_RV.device)
    chosen_values = logprobs_RV.gather(1, chosen_ids).flatten().tolist()

    def scored(token_id: int, logprob: float) -> ScoredToken:
        text = detokenizer.decode([token_id])
        return ScoredToken(token_id=token_id, text=text, logprob=logprob)

    return [
        TokenLogprobs(
            chosen=scored(request.token_id, chosen_values[index]),
            best=tuple(
                scored(token_id, value)
                for token_id, value in zip(
                    best_ids[index][: request.best], best_values[index], strict=False
                )
            ),
        )
        for index, request in enumerate(requests)
    ]
