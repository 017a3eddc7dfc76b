"""Carries out the scheduler's plans: one forward pass, sampling and text per step."""

from dataclasses import dataclass

import torch

from libs.engine.attention import PagedAttention
from libs.engine.decoder import Decoder, DecoderStep
from libs.engine.requests import SequenceRequest
from libs.engine.sampling import SamplingRow, sample_tokens
from libs.engine.steps import SampledToken, StepPlan, StepResult
from libs.engine.text_stream import Detokenizer, TextStream


@dataclass(frozen=True, slots=True)
class _OpenSequence:
    request: SequenceRequest
    text: TextStream


class ModelRunner:
    """Owns the weights, the KV and the text of the open sequences of one engine.

    Synchronous; all calls come from one thread, which may differ from the scheduler's. Its state
    follows the plans: each plan runs exactly once, in order.
    """

    def __init__(
        self,
        *,
        decoder: Decoder,
        attention: PagedAttention,
        detokenizer: Detokenizer,
        eos_token_ids: frozenset[int],
    ) -> None:
        self._decoder = decoder
        self._attention = attention
        self._detokenizer = detokenizer
        self._eos_token_ids = eos_token_ids
        self._sequences: dict[str, _OpenSequence] = {}

    def run(self, plan: StepPlan) -> StepResult:
        """Run one step; the KV of its tokens is written and its samples are returned."""
        for sequence_id in plan.closed:
            del self._sequences[sequence_id]
        for request in plan.opened:
            self._sequences[request.sequence_id] = self._open(request)
        sampling_entries = [entry for entry in plan.entries if entry.is_sampling]
        rows = [
            SamplingRow(
                options=self._sequences[entry.sequence_id].request.sampling,
                output_index=entry.output_index,
            )
            for entry in sampling_entries
        ]
        with torch.inference_mode():
            logits_RV = self._decoder.forward(self._step(plan), attention=self._attention)
            token_ids = sample_tokens(logits_RV, rows) if rows else []
        return StepResult(
            step_id=plan.step_id,
            sampled=tuple(
                self._sampled(entry.sequence_id, token_id)
                for entry, token_id in zip(sampling_entries, token_ids, strict=True)
            ),
        )

    def _open(self, request: SequenceRequest) -> _OpenSequence:
        text = TextStream(self._detokenizer, stop_strings=request.stop.stop_strings)
        text.replay(request.generated_token_ids)
        return _OpenSequence(request, text)

    def _step(self, plan: StepPlan) -> DecoderStep:
        token_ids: list[int] = []
        positions: list[int] = []
        sampling_rows: list[int] = []
        for entry in plan.entries:
            token_ids += entry.token_ids
            end = entry.start_position + len(entry.token_ids)
            positions += range(entry.start_position, end)
            if entry.is_sampling:
                sampling_rows.append(len(token_ids) - 1)
        device = self._decoder.device
        return DecoderStep(
            token_ids_N=torch.tensor(token_ids, device=device),
            positions_N=torch.tensor(positions, device=device),
            sampling_rows_R=torch.tensor(sampling_rows, dtype=torch.int64, device=device),
            attention=self._attention.prepare(plan.entries),
        )

    def _sampled(self, sequence_id: str, token_id: int) -> SampledToken:
        sequence = self._sequences[sequence_id]
        piece = sequence.text.push(
            token_id,
            is_stop_token=sequence.request.stop.is_stop_token(
                token_id, eos_token_ids=self._eos_token_ids
            ),
        )
        return SampledToken(
            sequence_id=sequence_id,
            token_id=token_id,
            text=piece.text,
            text_if_last=piece.text_if_last,
            is_stop_matched=piece.is_stop_matched,
        )
