"""Where requests wait and which replica they go to: the paper's one queue, or the live router's.

The router's line and its placement functions are the live ones; a report is taken at the moment of
the choice, so that only their arithmetic, not their delay, is simulated.
"""

import heapq
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from libs.contracts.reports import WorkerReport
from libs.sim.world import World
from services.online_router.options import RouterOptions
from services.online_router.placement import Wanted, choose_worker, view_of
from services.online_router.waiting import WaitingLine
from services.simulator.spot.batch_engine import power_of_two_within
from services.simulator.spot.control import MESSAGE_NS
from services.simulator.spot.replica import SimReplica
from services.simulator.spot.work import SimRequest, Work

SOON_NS: Final = RouterOptions(router_id="router-1", aliases=()).soon_ns


class FrontDoor(Protocol):
    """Who holds requests that no replica has."""

    def arrive(self, request: SimRequest) -> None:
        """A request comes in."""

    def put_back(self, works: Sequence[Work]) -> None:
        """A replica has lost this work; its KV is gone."""

    def offer(self) -> None:
        """A replica serves, or could begin something."""

    def answered(self) -> None:
        """A replica has answered a request."""

    @property
    def requests_waiting(self) -> int:
        """Requests that no replica has."""


class FifoDoor:
    """The request manager of SpotServe's artifact: first come, first served.

    A replica that has nothing gets the largest power of two of what waits, at most B. Where all
    have something, the one that has least gets more ahead of time, as long as it holds fewer than
    `batches_ahead` times B; 0 sends nothing ahead (the artifact's new batching). What a replica
    loses waits again under its time of arrival, and starts over.
    """

    def __init__(
        self, serving: Callable[[], Sequence[SimReplica]], *, batch_max: int, batches_ahead: int
    ) -> None:
        self._serving = serving
        self._batch_max = batch_max
        self._batches_ahead = batches_ahead
        self._waiting: list[tuple[int, str, SimRequest]] = []

    @property
    def requests_waiting(self) -> int:
        """See FrontDoor."""
        return len(self._waiting)

    def arrive(self, request: SimRequest) -> None:
        """See FrontDoor."""
        heapq.heappush(self._waiting, (request.arrived_at_ns, request.request_id, request))
        self._send()

    def put_back(self, works: Sequence[Work]) -> None:
        """See FrontDoor."""
        for request in (request for work in works for request in work.requests):
            request.tokens_recomputed += request.tokens_done
            request.tokens_done = 0
            heapq.heappush(self._waiting, (request.arrived_at_ns, request.request_id, request))
        self._send()

    def offer(self) -> None:
        """See FrontDoor."""
        self._send()

    def answered(self) -> None:
        """A batch ends as a whole, which its replica says by being idle."""

    def _send(self) -> None:
        while self._waiting:
            chosen = self._chosen()
            if chosen is None:
                return
            size = min(self._batch_max, power_of_two_within(len(self._waiting)))
            batch = [heapq.heappop(self._waiting)[2] for _ in range(size)]
            chosen.engine.add(Work(requests=batch))

    def _chosen(self) -> SimReplica | None:
        held = [(replica.engine.requests_held, replica) for replica in self._serving()]
        if not held:
            return None
        least, chosen = min(held, key=lambda row: row[0])
        is_allowed = least == 0 or least < self._batches_ahead * self._batch_max
        return chosen if is_allowed else None


class RoutedDoor:
    """The live router: each request goes to the replica with room where it is predicted to start
    soonest, and waits here while none has room. What is lost goes on from its tokens."""

    def __init__(
        self,
        world: World,
        serving: Callable[[], Sequence[SimReplica]],
        report_of: Callable[[SimReplica], WorkerReport],
    ) -> None:
        self._world = world
        self._serving = serving
        self._report_of = report_of
        self._line = WaitingLine()
        self._requests: dict[str, SimRequest] = {}
        """Those in the line."""

    @property
    def requests_waiting(self) -> int:
        """See FrontDoor."""
        return len(self._line)

    def arrive(self, request: SimRequest) -> None:
        """See FrontDoor."""
        self._line_up(request)
        self._send()

    def put_back(self, works: Sequence[Work]) -> None:
        """See FrontDoor."""
        for work in works:
            for request in work.requests:
                if work.kv_tokens:
                    request.tokens_recomputed += request.kv_tokens
                self._line_up(request)
        self._send()

    def offer(self) -> None:
        """See FrontDoor."""
        self._send()

    def answered(self) -> None:
        """Go on with those who wait, once the router has heard of it."""
        if self._line:
            self._world.after(MESSAGE_NS, self._send)

    def _line_up(self, request: SimRequest) -> None:
        self._requests[request.request_id] = request
        self._line.add(request.request_id, priority=0, arrived_at_ns=request.arrived_at_ns)

    def _send(self) -> None:
        for request_id in self._line:
            replica = self._chosen(self._requests[request_id])
            if replica is None:
                return
            self._line.discard(request_id)
            request = self._requests.pop(request_id)
            replica.engine.add(Work(requests=[request], tokens_done=request.tokens_done))

    def _chosen(self, request: SimRequest) -> SimReplica | None:
        replicas = {replica.lead_id: replica for replica in self._serving()}
        chosen = choose_worker(
            [view_of(self._report_of(replica)) for replica in replicas.values()],
            wanted=Wanted(
                prompt_tokens=request.kv_tokens,
                prompt_hashes=(),
                tokens_max=request.prompt_tokens + request.output_tokens,
                is_offline=False,
            ),
            soon_ns=SOON_NS,
        )
        return None if chosen is None else replicas[chosen.report.worker_id]
