"""The engine of SpotServe's paper: one fixed batch at a time, from its prefill to its last token.

    idle --add--> prefill > token 1 > token 2 > ... > last token --> idle
                     |         |                                (all requests of the batch end)
                     +-- stop: the next boundary between two tokens --> still

A batch is the largest power of two of what waits here, at most B. It is not joined by what comes
later, and its requests are answered together (FasterTransformer has no continuous batching). A
batch that comes with its KV goes first, as it is. Source: SpotServe section 4.1 and its artifact;
times are those of its cost model.
"""

from collections import deque
from collections.abc import Callable

from libs.kernel.core import require
from libs.policy.cost_model import BatchTimes
from libs.sim.world import Action, World
from services.simulator.spot.engine import EngineOwner, EngineReport
from services.simulator.spot.work import SimRequest, Work


class BatchEngine:
    """See ReplicaEngine."""

    def __init__(
        self, world: World, owner: EngineOwner, times: Callable[[int, int], BatchTimes],
        *, batch_max: int,
    ) -> None:  # fmt: skip
        self._world = world
        self._owner = owner
        self._times = times
        """Of (requests, prompt tokens)."""
        self._batch_max = batch_max
        self._moved: deque[Work] = deque()
        """Batches that came with their KV."""
        self._fresh: deque[SimRequest] = deque()
        self._batch: Work | None = None
        self._first_token_at_ns = 0
        """When the first token of this stretch is there."""
        self._tokens_before = 0
        """Of the batch, when this stretch began."""
        self._step_ns = 1
        self._stretch = 0
        """Counts what was begun, so that an end that was called off is told from the real one."""
        self._is_started = False

    def start(self) -> None:
        """See ReplicaEngine."""
        self._is_started = True
        self._begin_next()

    def add(self, work: Work) -> None:
        """See ReplicaEngine."""
        if work.kv_tokens:
            self._moved.append(work)
        else:
            self._fresh.extend(work.requests)
        if self._is_started and self._batch is None:
            self._begin_next()

    def stop(self, on_still: Action) -> None:
        """See ReplicaEngine."""
        self._is_started = False
        self._stretch += 1
        batch = self._batch
        if batch is None:
            on_still()
            return
        steps = max(0, -((self._first_token_at_ns - self._world.now_ns) // self._step_ns))
        still_at_ns = max(self._world.now_ns, self._first_token_at_ns + steps * self._step_ns)
        most = self._output_tokens(batch)
        tokens = min(most, self._tokens_before + 1 + steps)

        stretch = self._stretch

        def stand_still() -> None:
            if self._stretch != stretch:
                return  # broken meanwhile
            self._keep(batch, tokens)
            if tokens == most:
                self._end(batch)
            on_still()

        self._world.after(still_at_ns - self._world.now_ns, stand_still)

    def halt(self) -> None:
        """See ReplicaEngine."""
        self._is_started = False
        self._stretch += 1

    def held(self) -> list[Work]:
        """See ReplicaEngine."""
        waiting = [*self._moved, *(Work(requests=[request]) for request in self._fresh)]
        if self._batch is None:
            return waiting
        if self._is_started:
            self._keep(self._batch, self._tokens_now(self._batch))
        return [self._batch, *waiting]

    def take(self) -> list[Work]:
        """See ReplicaEngine."""
        require(not self._is_started, "work is taken from an engine that computes")
        works = self.held()
        self._batch = None
        self._moved.clear()
        self._fresh.clear()
        return works

    @property
    def requests_held(self) -> int:
        """See ReplicaEngine."""
        running = 0 if self._batch is None else len(self._batch.requests)
        return running + sum(len(work.requests) for work in self._moved) + len(self._fresh)

    def report(self) -> EngineReport:
        """See ReplicaEngine."""
        works = self.held()
        running = 0 if self._batch is None else len(self._batch.requests)
        return EngineReport(
            requests_running=running,
            requests_waiting=sum(len(work.requests) for work in works) - running,
            tokens_waiting=sum(
                request.prompt_tokens for work in works if not work.kv_tokens
                for request in work.requests
            ),
            step_ns=self._step_ns if running else 0,
        )  # fmt: skip

    @property
    def kv_tokens(self) -> int:
        """See ReplicaEngine."""
        return sum(work.kv_tokens for work in self.held())

    def _begin_next(self) -> None:
        if self._batch is None:
            self._batch = self._next_batch()
        if self._batch is None:
            self._owner.engine_idle()
            return
        batch = self._batch
        times = self._times(
            len(batch.requests), max(request.prompt_tokens for request in batch.requests)
        )
        if not batch.kv_tokens:
            batch.tokens_done = 0
            for request in batch.requests:
                request.tokens_recomputed += request.tokens_done
                request.tokens_done = 0
        self._step_ns = times.step_ns
        self._tokens_before = batch.tokens_done
        ahead_ns = 0 if batch.kv_tokens else times.prefill_ns + times.embedding_ns
        self._first_token_at_ns = self._world.now_ns + ahead_ns + times.step_ns
        tokens = self._output_tokens(batch) - batch.tokens_done
        self._stretch += 1
        stretch = self._stretch

        def finish() -> None:
            if self._stretch == stretch:
                self._keep(batch, self._output_tokens(batch))
                self._end(batch)
                self._begin_next()

        self._world.after(ahead_ns + tokens * times.step_ns, finish)

    def _next_batch(self) -> Work | None:
        if self._moved:
            return self._moved.popleft()
        if not self._fresh:
            return None
        size = min(self._batch_max, power_of_two_within(len(self._fresh)))
        return Work(requests=[self._fresh.popleft() for _ in range(size)])

    def _end(self, batch: Work) -> None:
        self._batch = None
        for request in batch.requests:
            request.finished_at_ns = self._world.now_ns
            self._owner.request_finished(request)

    def _keep(self, batch: Work, tokens: int) -> None:
        """Note how far the batch has come."""
        batch.tokens_done = tokens
        for request in batch.requests:
            request.tokens_done = min(tokens, request.output_tokens)
            if tokens and request.first_token_at_ns is None:
                request.first_token_at_ns = self._first_token_at_ns
        if tokens > 0:
            batch.kv_tokens = sum(request.kv_tokens for request in batch.requests)

    def _tokens_now(self, batch: Work) -> int:
        if self._world.now_ns < self._first_token_at_ns:
            return self._tokens_before
        steps = (self._world.now_ns - self._first_token_at_ns) // self._step_ns
        return min(self._output_tokens(batch), self._tokens_before + 1 + steps)

    @staticmethod
    def _output_tokens(batch: Work) -> int:
        return max(request.output_tokens for request in batch.requests)


def power_of_two_within(count: int) -> int:
    """Return the largest power of two that is not above the count, which is at least 1."""
    return 1 << (count.bit_length() - 1)
