"""An engine without a model: executes the scheduler's plans in pure arithmetic.

It stands in for the runner in simulation and in tests of everything around the engine. The token
at one index of a sequence depends on its prompt, its seed and the index alone, as it does for a
real model that samples with counter-based noise: so a run without disturbance is known in advance
by `simulated_tokens`, and every disturbed run must equal it. Stop strings, penalties and biases
are not simulated; a stop token before min_tokens does not end the sequence.
"""

import hashlib
from array import array
from dataclasses import dataclass

from libs.contracts.online import ScoredToken, TokenLogprobs
from libs.engine.requests import SequenceRequest
from libs.engine.steps import SampledToken, StepPlan, StepResult
from libs.engine.yield_signal import YieldSignal
from libs.kernel.core import require
from libs.kernel.units import NS_PER_MS, NS_PER_US


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTimeModel:
    """How long a step takes: a constant, plus a share per prompt token and per decoding sequence.

    The defaults resemble a small model on one processor core.
    """

    step_ns: int = 2 * NS_PER_MS
    prefill_token_ns: int = 20 * NS_PER_US
    decode_sequence_ns: int = 500 * NS_PER_US

    def duration_ns(self, plan: StepPlan) -> int:
        """Return the duration of this step."""
        decoding = sum(1 for entry in plan.entries if len(entry.token_ids) == 1)
        tokens = sum(len(entry.token_ids) for entry in plan.entries) - decoding
        return self.step_ns + tokens * self.prefill_token_ns + decoding * self.decode_sequence_ns


class SimulatedRunner:
    """Runs plans like the real runner, and holds the scheduler to what a plan promises."""

    def __init__(self, *, vocabulary_size: int, eos_token_ids: frozenset[int]) -> None:
        self._vocabulary_size = vocabulary_size
        self._eos_token_ids = eos_token_ids
        self._open: dict[str, SequenceRequest] = {}
        self._step_id: int | None = None
        self._signal = YieldSignal()

    def request_yield(self, step_id: int) -> None:
        """Give this step up, if it has safepoints and has not run yet."""
        self._signal.request(step_id)

    def run(self, plan: StepPlan) -> StepResult:
        """Return the token of every sampling entry; none of a step that was to be given up.

        Raises: InvariantViolation if the plan breaks a promise of StepPlan.
        """
        require(bool(plan.entries), "a plan has no entries")
        require(
            self._step_id is None or plan.step_id == self._step_id + 1,
            f"step {plan.step_id} follows step {self._step_id}",
        )
        self._step_id = plan.step_id
        for sequence_id in plan.closed:
            require(sequence_id in self._open, f"{sequence_id} is closed but was not open")
            del self._open[sequence_id]
        for request in plan.opened:
            require(request.sequence_id not in self._open, f"{request.sequence_id} is open twice")
            self._open[request.sequence_id] = request
        if plan.layers_between_safepoints is not None and self._signal.is_requested(plan.step_id):
            return StepResult(step_id=plan.step_id, sampled=(), is_yielded=True)
        sampled = tuple(
            self._sample(self._open[entry.sequence_id], entry.output_index)
            for entry in plan.entries
            if entry.is_sampling
        )
        return StepResult(step_id=plan.step_id, sampled=sampled)

    def _sample(self, request: SequenceRequest, index: int) -> SampledToken:
        token_id = simulated_token(request, index=index, vocabulary_size=self._vocabulary_size)
        text = simulated_text(token_id)
        is_stop = request.stop.is_stop_token(
            token_id, output_index=index, eos_token_ids=self._eos_token_ids
        )
        return SampledToken(
            sequence_id=request.sequence_id,
            token_id=token_id,
            text=text,
            text_if_last="" if is_stop else text,
            is_stop_matched=False,
            logprobs=simulated_logprobs(
                token_id, best=request.sampling.logprobs, vocabulary_size=self._vocabulary_size
            ),
        )


def simulated_token(request: SequenceRequest, *, index: int, vocabulary_size: int) -> int:
    """Return the token that every simulated engine generates at this index."""
    seed = request.sampling.seed if request.sampling.temperature > 0 else 0
    prompt = array("q", request.prompt_token_ids).tobytes()
    digest = hashlib.blake2b(prompt + f"/{seed}/{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % vocabulary_size


def simulated_text(token_id: int) -> str:
    """Return the text of a token of a simulated engine."""
    return f"<{token_id}>"


def simulated_logprobs(
    token_id: int, *, best: int | None, vocabulary_size: int
) -> TokenLogprobs | None:
    """Return what a simulated engine reports of a token: it is the best, its neighbours follow."""
    if best is None:
        return None
    ranked = [(token_id + rank) % vocabulary_size for rank in range(min(best, vocabulary_size))]
    return TokenLogprobs(
        chosen=_simulated_score(token_id, rank=0),
        best=tuple(_simulated_score(other, rank=rank) for rank, other in enumerate(ranked)),
    )


def _simulated_score(token_id: int, *, rank: int) -> ScoredToken:
    return ScoredToken(token_id=token_id, text=simulated_text(token_id), logprob=-0.5 * (rank + 1))


def simulated_tokens(
    request: SequenceRequest,
    *,
    vocabulary_size: int,
    eos_token_ids: frozenset[int],
    context_tokens_max: int,
) -> tuple[int, ...]:
    """Return all tokens of a run without disturbance, from index 0 to the end of the sequence."""
    room = context_tokens_max - len(request.prompt_token_ids)
    token_ids: list[int] = []
    for index in range(min(request.stop.max_tokens, room)):
        token_id = simulated_token(request, index=index, vocabulary_size=vocabulary_size)
        token_ids.append(token_id)
        if request.stop.is_stop_token(token_id, output_index=index, eos_token_ids=eos_token_ids):
            break
    return tuple(token_ids)
