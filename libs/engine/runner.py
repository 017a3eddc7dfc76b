"""Carries out the scheduler's plans: one forward pass, sampling and text per step."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch

from libs.contracts.online import TokenLogprobs
from libs.engine.forward import ForwardPass
from libs.engine.grammar import AnswerGrammar, GrammarVocabulary
from libs.engine.logits_adjuster import LogitsAdjuster, needs_adjuster
from libs.engine.prompt_scores import PromptScores
from libs.engine.requests import SequenceRequest
from libs.engine.safepoints import Safepoints
from libs.engine.sampling import SamplingRow, sample_tokens
from libs.engine.steps import PlanEntry, SampledToken, StepPlan, StepResult
from libs.engine.text_stream import Detokenizer, TextStream
from libs.engine.token_scores import ScoreRequest, score_tokens


@dataclass(frozen=True, slots=True)
class _OpenSequence:
    request: SequenceRequest
    text: TextStream
    adjuster: LogitsAdjuster | None
    grammar: AnswerGrammar | None
    prompt_scores: PromptScores | None


class ModelRunner:
    """Owns the weights, the KV and the text of the open sequences of one engine.

    Synchronous; all calls but `request_yield` come from one thread, which may differ from the
    scheduler's. Its state follows the plans: each plan runs exactly once, in order.
    """

    def __init__(
        self,
        *,
        forward: ForwardPass,
        detokenizer: Detokenizer,
        vocabulary_size: int,
        eos_token_ids: frozenset[int],
        grammars: GrammarVocabulary | None = None,
    ) -> None:
        """Without `grammars` no request may have an answer_schema."""
        self._forward = forward
        self._detokenizer = detokenizer
        self._vocabulary_size = vocabulary_size
        self._eos_token_ids = eos_token_ids
        self._grammars = grammars
        self._sequences: dict[str, _OpenSequence] = {}

    @property
    def safepoints(self) -> Safepoints:
        """Where steps may be given up, and what became of it."""
        return self._forward.safepoints

    def request_yield(self, step_id: int) -> None:
        """Ask this step to end at its next safepoint, if it has one left. From any thread."""
        self._forward.safepoints.request(step_id)

    def run(self, plan: StepPlan) -> StepResult:
        """Run one step; the KV of its tokens is written and its samples are returned.

        One that yields opens and closes sequences all the same, and changes nothing else.
        """
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
            all_logits_RV = self._forward.logits(plan)
            if all_logits_RV is None:
                return StepResult(step_id=plan.step_id, sampled=(), is_yielded=True)
            self._score_prompts(all_logits_RV, plan)
            logits_RV = _of_samples(all_logits_RV, plan)
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
        grammar = None
        if request.answer_schema is not None:
            assert self._grammars is not None, "this tokenizer knows no grammars"
            grammar = self._grammars.begin(request.answer_schema, request.generated_token_ids)
        adjuster = None
        if needs_adjuster(request):
            with torch.inference_mode():
                adjuster = LogitsAdjuster(
                    request,
                    eos_token_ids=self._eos_token_ids,
                    vocabulary_size=self._vocabulary_size,
                    device=self._forward.device,
                    grammar=grammar,
                )
        prompt_scores = None
        if request.needs_prompt_scores:
            prompt_scores = PromptScores(request, detokenizer=self._detokenizer)
        return _OpenSequence(request, text, adjuster, grammar, prompt_scores)

    def _score_prompts(self, logits_RV: torch.Tensor, plan: StepPlan) -> None:
        """Take in the scores of the prompt tokens that the plan asks for."""
        places: list[tuple[PromptScores, int]] = []
        requests: list[ScoreRequest] = []
        row = 0
        for entry in plan.entries:
            scores = self._sequences[entry.sequence_id].prompt_scores
            for offset, position in enumerate(entry.scored_positions):
                assert scores is not None
                places.append((scores, position))
                requests.append(scores.score_request(position, row=row + offset))
            row += entry.logit_rows
        scored = score_tokens(logits_RV, requests, detokenizer=self._detokenizer)
        for (scores, position), logprobs in zip(places, scored, strict=True):
            scores.take(position, logprobs)

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
        if sequence.prompt_scores is not None and entry.output_index == 0:
            assert logprobs is not None
            logprobs = logprobs.model_copy(update={"prompt": sequence.prompt_scores.whole()})
        is_stop_token = sequence.request.stop.is_stop_token(
            token_id, output_index=entry.output_index, eos_token_ids=self._eos_token_ids
        )
        if sequence.adjuster is not None:
            sequence.adjuster.push(token_id)
        grammar = sequence.grammar
        if grammar is not None and not is_stop_token:
            grammar.push(token_id)
        is_cut_off = grammar is not None and grammar.is_broken
        piece = sequence.text.push(token_id, is_stop_token=is_stop_token or is_cut_off)
        return SampledToken(
            sequence_id=entry.sequence_id,
            token_id=token_id,
            text=piece.text,
            text_if_last=piece.text_if_last,
            is_stop_matched=piece.is_stop_matched or (grammar is not None and grammar.is_complete),
            is_cut_off=is_cut_off,
            logprobs=logprobs,
        )


def _of_samples(logits_RV: torch.Tensor, plan: StepPlan) -> torch.Tensor:
    """Return the rows that are sampled: the last one of each sampling entry."""
    if not any(entry.tokens_scored for entry in plan.entries):
        return logits_RV
    ends = accumulate(entry.logit_rows for entry in plan.entries)
    rows = [end - 1 for entry, end in zip(plan.entries, ends, strict=True) if entry.is_sampling]
    return logits_RV[torch.tensor(rows, dtype=torch.int64, device=logits_RV.device)]
