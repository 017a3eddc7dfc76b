"""Where requests wait and which replica they go to: the paper's one queue, or the live router's.

The router's placement functions are the live ones; a report is taken at the moment of the choice,
so that only their arithmetic, not their delay, is simulated.
"""

import heapq
from collections.abc import Callable, Sequence
from typing import Protocol

from libs.contracts.reports import WorkerReport
from libs.kernel.core import require
from services.online_router.placement import choose_worker, view_of
from services.simulator.spot.replica import SimReplica
from services.simulator.spot.work import SimRequest, Work


class FrontDoor(Protocol):
    """Who holds requests that no replica has."""

    def arrive(self, request: SimRequest) -> None:
        """A request comes in."""

    def put_back(self, works: Sequence[Work]) -> None:
        """A replica has lost this work; its KV is gone."""

    def offer(self, replica: SimReplica) -> None:
        """A replica serves, or could begin something."""

    @property
    def requests_waiting(self) -> int:
        """Requests that no replica has."""


class FifoDoor:
    """SpotServe's request manager: first come, first served; to idle replicas, in fixed batches.

    A batch is the largest power of two of what waits, at most B. What a replica loses waits again
    under its time of arrival, and starts over.
    """

    def __init__(self, serving: Callable[[], Sequence[SimReplica]], *, batch_max: int) -> None:
        self._serving = serving
        self._batch_max = batch_max
        self._waiting: list[tuple[int, str, SimRequest]] = []

    @property
    def requests_waiting(self) -> int:
        """See FrontDoor."""
        return len(self._waiting)

    def arrive(self, request: SimRequest) -> None:
        """See FrontDoor."""
        heapq.heappush(self._waiting, (request.arrived_at_ns, request.request_id, request))
        for replica in self._serving():
            self.offer(replica)

    def put_back(self, works: Sequence[Work]) -> None:
        """See FrontDoor."""
        for work in works:
            for request in work.requests:
                request.tokens_recomputed += request.tokens_done
                request.tokens_done = 0
                self.arrive(request)

    def offer(self, replica: SimReplica) -> None:
        """See FrontDoor."""
        if not self._waiting or replica.engine.report().requests_running:
            return
        size = min(self._batch_max, 1 << (len(self._waiting).bit_length() - 1))
        batch = [heapq.heappop(self._waiting)[2] for _ in range(size)]
        replica.engine.add(Work(requests=batch))


class RoutedDoor:
    """The live router: each request goes at once to the replica where it is predicted to start
    soonest, and waits here only while there is none. What is lost goes on from its tokens."""

    def __init__(
        self,
        serving: Callable[[], Sequence[SimReplica]],
        report_of: Callable[[SimReplica], WorkerReport],
    ) -> None:
        self._serving = serving
        self._report_of = report_of
        self._waiting: list[SimRequest] = []

    @property
    def requests_waiting(self) -> int:
        """See FrontDoor."""
        return len(self._waiting)

    def arrive(self, request: SimRequest) -> None:
        """See FrontDoor."""
        replicas = {replica.lead_id: replica for replica in self._serving()}
        if not replicas:
            self._waiting.append(request)
            return
        views = [view_of(self._report_of(r), sessions_placed=0) for r in replicas.values()]
        chosen = choose_worker(views, prompt_tokens=request.kv_tokens, prompt_hashes=())
        require(chosen is not None, "a replica serves and none is chosen")
        assert chosen is not None
        replicas[chosen.report.worker_id].engine.add(
            Work(requests=[request], tokens_done=request.tokens_done)
        )

    def put_back(self, works: Sequence[Work]) -> None:
        """See FrontDoor."""
        for work in works:
            for request in work.requests:
                if work.kv_tokens:
                    request.tokens_recomputed += request.kv_tokens
                self.arrive(request)

    def offer(self, replica: SimReplica) -> None:
        """See FrontDoor."""
        waiting, self._waiting = self._waiting, []
        for request in sorted(waiting, key=lambda r: (r.arrived_at_ns, r.request_id)):
            self.arrive(request)
