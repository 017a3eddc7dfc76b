"""The router of a co-serving run: sends both tides, times the tokens, acknowledges them."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from libs.contracts.sessions import AcknowledgeTokens, TokenReceipt
from libs.contracts.token_step import TokenStep
from libs.kernel.units import NS_PER_MS
from libs.sim.world import World
from services.gpu_worker.events import AcknowledgeReceived, StartReceived, WorkerEvent
from services.simulator.coserve.requests import (
    OFFLINE_PRIORITY,
    ONLINE_PRIORITY,
    ROUTER_ID,
    CoserveRequest,
)
from services.simulator.coserve.worker import CoserveWorker

ACKNOWLEDGE_AFTER_NS: Final = 100 * NS_PER_MS
"""Well before a worker sends again. A receipt for each step would say the same, in more time."""


@dataclass(slots=True, kw_only=True)
class ServedRequest:
    """One online request, and when its tokens came."""

    arrival_ns: int
    output_tokens: int
    token_at_ns: list[int] = field(default_factory=list)

    @property
    def is_answered(self) -> bool:
        """Whether all of its tokens have come."""
        return len(self.token_at_ns) == self.output_tokens


class CoserveRouter:
    """Speaks to one worker."""

    def __init__(
        self,
        world: World,
        *,
        alias: str,
        backlog: Iterator[CoserveRequest],
        offline_open_max: int,
    ) -> None:
        self.served: dict[str, ServedRequest] = {}
        """Online requests that have arrived, in that order."""
        self.answered = 0
        """Online requests, all of whose tokens have come."""
        self._world = world
        self._alias = alias
        self._backlog = backlog
        self._offline_open: set[str] = set()
        self._offline_open_max = offline_open_max
        self._next_index: dict[str, int] = {}
        """Of sessions with tokens that are not acknowledged yet."""
        self._worker: CoserveWorker | None = None

    def connect(self, worker: CoserveWorker) -> None:
        """Speak to this worker from now on, and fill its backlog."""
        self._worker = worker
        self._fill_backlog()

    def send_online(self, request: CoserveRequest) -> None:
        """Start an online session now."""
        self.served[request.request_id] = ServedRequest(
            arrival_ns=self._world.now_ns, output_tokens=request.output_tokens
        )
        self._start(request, priority=ONLINE_PRIORITY)

    def tokens_came(self, step: TokenStep) -> None:
        """Time them, acknowledge them soon, and replace offline sessions that have ended."""
        if not self._next_index:
            self._world.after(ACKNOWLEDGE_AFTER_NS, self._acknowledge)
        for entry in step.entries:
            self._next_index[entry.request_id] = entry.first_index + len(entry.token_ids)
            served = self.served.get(entry.request_id)
            if served is not None:
                served.token_at_ns += [self._world.now_ns] * len(entry.token_ids)
                self.answered += served.is_answered
            elif entry.finish_reason is not None:
                self._offline_open.remove(entry.request_id)
        self._fill_backlog()

    def _acknowledge(self) -> None:
        receipts = tuple(
            TokenReceipt(request_id=request_id, session_epoch=1, next_index=next_index)
            for request_id, next_index in self._next_index.items()
        )
        self._next_index.clear()
        message = AcknowledgeTokens(router_id=ROUTER_ID, receipts=receipts)
        self._post(AcknowledgeReceived(message=message, cause_id=ROUTER_ID))

    def _fill_backlog(self) -> None:
        while len(self._offline_open) < self._offline_open_max:
            request = next(self._backlog, None)
            if request is None:
                return
            self._offline_open.add(request.request_id)
            self._start(request, priority=OFFLINE_PRIORITY)

    def _start(self, request: CoserveRequest, *, priority: int) -> None:
        message = request.start(alias=self._alias, priority=priority)
        self._post(StartReceived(message=message, cause_id=request.request_id))

    def _post(self, event: WorkerEvent) -> None:
        assert self._worker is not None, "nobody to speak to"
        self._worker.post(event)
