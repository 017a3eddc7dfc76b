"""The live scheduler's steps, counted instead of taken: a request costs a few actions, not a token.

Where all sequences are online, nobody shares a prefix and the pool is never full, what the live
scheduler composes follows from four numbers of each sequence. This engine keeps those numbers and
no tokens, blocks or hashes:

    admitted --prefill, chunk by chunk--> decodes ... decodes --> ends
                                          \\__ one stretch __/

A stretch of steps in which nothing but decoding can happen is one addition: until the first of
them ends, or until the boundary after somebody comes. Everything that can be seen from outside
(instants, tokens, KV, reports) equals `ContinuousEngine` taking single steps to the nanosecond;
tests compare the two, on one replica and in whole fleets.
"""

from collections import deque
from dataclasses import dataclass
from typing import Final

from libs.policy.model_profile import ModelProfile
from libs.policy.shapes import ReplicaShape
from libs.sim.world import World
from services.simulator.spot.engine import EngineOwner, EngineReport
from services.simulator.spot.options import BLOCK_TOKENS
from services.simulator.spot.step_times import PREFILL_CHUNKS, StepTimes
from services.simulator.spot.stretching_engine import StretchingEngine
from services.simulator.spot.work import SimRequest, Work

HALTED: Final = EngineReport()


@dataclass(slots=True, eq=False)
class _Sequence:
    """What the scheduler's decisions depend on."""

    work: Work
    request: SimRequest
    missing: int
    """Tokens without KV, the last one included; 1: it decodes."""
    imported: int
    """Tokens whose KV came along, in whole blocks; counts from its admission on."""
    chunk: int = 0
    """Its part of the step under way."""


class CountingEngine(StretchingEngine):
    """See ReplicaEngine."""

    def __init__(
        self, world: World, owner: EngineOwner, *, profile: ModelProfile, shape: ReplicaShape,
        sequences_max: int, step_tokens_max: int, prefill_chunks: int = PREFILL_CHUNKS,
    ) -> None:  # fmt: skip
        super().__init__(world, owner)
        self._times = StepTimes(profile, shape, prefill_chunks=prefill_chunks)
        self._sequences_max = sequences_max
        self._step_tokens = max(step_tokens_max, sequences_max)
        self._known: dict[str, _Sequence] = {}
        """All but those that arrive, in order of arrival."""
        self._running: list[_Sequence] = []
        self._waiting: deque[_Sequence] = deque()
        self._is_decoding_only = False
        """Every sequence that runs gains a token in every step of the stretch."""

    # ------------------------------------------------------------------ from outside

    @property
    def requests_held(self) -> int:
        """See ReplicaEngine."""
        return len(self._known) + len(self._arriving)

    def report(self) -> EngineReport:
        """See ReplicaEngine."""
        if self._is_halted:
            return HALTED
        return EngineReport(
            requests_running=len(self._running),
            requests_waiting=len(self._waiting) + len(self._arriving),
            tokens_waiting=self._tokens_waiting(),
            step_ns=self._step_ns if self._steps else 0,
        )

    def _tokens_waiting(self) -> int:
        tokens = 0
        for sequence in self._running:
            if sequence.missing > 1:
                tokens += sequence.missing
        for sequence in self._waiting:
            tokens += sequence.missing
        for work in self._arriving:
            tokens += work.requests[0].kv_tokens - work.kv_tokens
        return tokens

    def _held_known(self) -> list[Work]:
        if not self._is_halted:
            self._note_progress()
        return [sequence.work for sequence in self._known.values()]

    def _forget(self) -> None:
        self._known.clear()
        self._running.clear()
        self._waiting.clear()

    def _note_progress(self) -> None:
        """Write into the works what they have now."""
        passed = self._steps_passed()
        for sequence in self._running:
            work, request = sequence.work, sequence.request
            work.tokens_done = request.tokens_done + passed
            work.kv_tokens = request.kv_tokens - sequence.missing + passed
        for sequence in self._waiting:
            sequence.work.tokens_done = sequence.request.tokens_done
            sequence.work.kv_tokens = 0

    # ------------------------------------------------------------------ steps

    def _next_stretch(self) -> tuple[int, int] | None:
        """Choose what the next step computes, as the live scheduler does: decodes, then prompts
        that have begun, then those that wait; or how many steps of decodes alone are to come."""
        if not self._known:
            return None
        running = self._running
        prefilling = [sequence for sequence in running if sequence.missing > 1]
        nobody_comes = not self._waiting or len(running) == self._sequences_max
        self._is_decoding_only = (
            not prefilling and nobody_comes and all(s.request.tokens_done for s in running)
        )
        if self._is_decoding_only:
            steps = min(s.request.output_tokens - s.request.tokens_done for s in running)
            return steps, self._times.decoding_ns(len(running))
        left = self._step_tokens
        for sequence in running:
            if sequence.missing == 1:
                sequence.chunk = 1
                left -= 1
        for sequence in prefilling:
            sequence.chunk = min(sequence.missing, left)
            left -= sequence.chunk
        while self._waiting and left > 0 and len(running) < self._sequences_max:
            sequence = self._waiting.popleft()
            sequence.missing -= sequence.imported
            sequence.chunk = min(sequence.missing, left)
            left -= sequence.chunk
            running.append(sequence)
        # A row is priced as a decode by its looks, be it the last of a prompt computed anew.
        decodes = sum(s.chunk == 1 and s.request.tokens_done > 0 for s in running)
        prompt_tokens = self._step_tokens - left - decodes
        return 1, self._times.step_ns(decodes=decodes, prompt_tokens=prompt_tokens)

    def _account(self, steps: int) -> None:
        sampling = self._running
        if not self._is_decoding_only:
            sampling = [s for s in self._running if s.chunk == s.missing]
            for sequence in self._running:
                sequence.missing -= sequence.chunk
        first_at_ns = self._began_at_ns + self._step_ns
        has_ended = False
        for sequence in sampling:
            request = sequence.request
            sequence.missing = 1
            request.tokens_done += steps
            if request.first_token_at_ns is None:
                request.first_token_at_ns = first_at_ns
            if request.tokens_done >= request.output_tokens:
                has_ended = True
                self._finish(request)
        if has_ended:
            self._running = [s for s in self._running if s.request.finished_at_ns is None]

    def _finish(self, request: SimRequest) -> None:
        request.finished_at_ns = self._world.now_ns
        del self._known[request.request_id]
        self._owner.request_finished(request)

    def _take_in(self) -> None:
        arriving, self._arriving = self._arriving, []
        for work in arriving:
            request = work.requests[0]
            blocks = min(work.kv_tokens, request.kv_tokens - 1) // BLOCK_TOKENS
            sequence = _Sequence(
                work, request, missing=request.kv_tokens, imported=blocks * BLOCK_TOKENS
            )
            self._known[request.request_id] = sequence
            self._waiting.append(sequence)
