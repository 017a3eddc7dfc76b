"""Carries out the scheduler's plans: one forward pass, sampling and text per step."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from libs.contracts.online import TokenLogprobs
from libs.engine.forward import ForwardPass
from libs.engine.logits_adjuster import LogitsAdjuster, needs_adjuster
from libs.engine.requests import SequenceRequest
from libs.engine.sampling import SamplingRow, sample_tokens
from libs.engine.steps import PlanEntry, SampledToken, StepPlan, StepResult
from libs.engine.text_stream import Detokenizer, TextStream
from libs.engine.token_scores import ScoreRequest, score_tokens


@dataclass(frozen=True, slots=True)
class _OpenSequence:
    request: SequenceRequest
    text: TextStream
    adjuster: LogitsAdjuster | None


class ModelRunner:
    """Owns the weights, the KV and the text of the open sequences of one engine.

    Synchronous; all calls come from one thread, which may differ from the scheduler's. Its state
    follows the plans: each plan runs exactly once, in order.
    """

    def __init__(
        self,
        *,
        forward: ForwardPass,
        detokenizer: Detokenizer,
        vocabulary_size: int,
        eos_token_ids: frozenset[int],
    ) -> None:
        self._forward = forward
        self._detokenizer = detokenizer
        self._vocabulary_size = vocabulary_size
        self._eos_token_ids = eos_token_ids
        self._sequences: dict[str, _OpenSequence] = {}

    def run(self, plan: StepPlan) -> StepResult:
        """Run one step; the KV of its tokens is written and its samples are returned."""
        for sequence_id in plan.closed:
            del self._sequences[sequence_id]
        for request in plan.opened:
            self._sequences[request.sequence_id] = self._open(request)
        entries = [entry for entry in plan.entries if entry.is_sampling]
        rows = []
        for entry in entries:
            sequence = self._sequences[entry.sequence_id]
            rows.append(
                SamplingRow(
                    options=sequence.request.sampling,
                    output_index=entry.output_index,
                    adjuster=sequence.adjuster,
                )
            )
        with torch.inference_mode():
            logits_RV = self._forward.logits(plan)
            token_ids = sample_tokens(logits_RV, rows) if rows else []
            logprobs = self._scores(logits_RV, entries, token_ids)
            sampled = [
                self._sampled(entry, token_id, logprobs=logprobs.get(index))
                for index, (entry, token_id) in enumerate(zip(entries, token_ids, strict=True))
            ]
        return StepResult(step_id=plan.step_id, sampled=tuple(sampled))

    def _open(self, request: SequenceRequest) -> _OpenSequence:
        text = TextStream(
            self._detokenizer,
            stop_strings=request.stop.stop_strings,
            min_tokens=request.stop.min_tokens,
        )
        text.replay(request.generated_token_ids)
        adjuster = None
        if needs_adjuster(request):
            with torch.inference_mode():
                adjuster = LogitsAdjuster(
                    request,
                    eos_token_ids=self._eos_token_ids,
                    vocabulary_size=self._vocabulary_size,
                    device=self._forward.device,
                )
        return _OpenSequence(request, text, adjuster)

    def _scores(
        self, logits_RV: torch.Tensor, entries: Sequence[PlanEntry], token_ids: Sequence[int]
    ) -> dict[int, TokenLogprobs]:
        """Return the log probabilities of the rows that ask for them."""
        requests = []
        for row, (entry, token_id) in enumerate(zip(entries, token_ids, strict=True)):
            best = self._sequences[entry.sequence_id].request.sampling.logprobs
            if best is not None:
                requests.append(ScoreRequest(row=row, token_id=token_id, best=best))
        scores = score_tokens(logits_RV, requests, detokenizer=self._detokenizer)
        return {request.row: score for request, score in zip(requests, scores, strict=True)}

    def _sampled(
        self, entry: PlanEntry, token_id: int, *, logprobs: TokenLogprobs | None
    ) -> SampledToken:
        sequence = self._sequences[entry.sequence_id]
        if sequence.adjuster is not None:
            sequence.adjuster.push(token_id)
        piece = sequence.text.push(
            token_id,
            is_stop_token=sequence.request.stop.is_stop_token(
                token_id, output_index=entry.output_index, eos_token_ids=self._eos_token_ids
            ),
        )
        return SampledToken(
            sequence_id=entry.sequence_id,
            token_id=token_id,
            text=piece.text,
            text_if_last=piece.text_if_last,
            is_stop_matched=piece.is_stop_matched,
            logprobs=logprobs,
        )
