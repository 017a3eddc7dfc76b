"""What befalls the demo's fleet while clients stream: each strike, when it is due, what it did."""

import signal
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from libs.contracts.local_cloud import AddNode, CloudRefused, KillNode, PreemptNode
from libs.contracts.reports import RouterReport, WorkerReport
from libs.kernel.units import NS_PER_S
from libs.runtime.clock import Clock
from services.launcher.demo_load import Load
from services.launcher.fleet import Fleet
from services.launcher.local_cloud import LocalCloud

SESSIONS_STRUCK: Final = 3
"""A victim should hold so many sessions; past another half of the tokens one is enough."""
GRACE_NS: Final = 30 * NS_PER_S
"""What most clouds give a spot machine."""


class StrikeKind(StrEnum):
    """What happens."""

    PREEMPT_NODE = "preempt_node"
    KILL_NODE = "kill_node"
    ADD_NODE = "add_node"
    KILL_ROUTER = "kill_router"


@dataclass(frozen=True, slots=True, kw_only=True)
class Strike:
    """One blow: due once clients have this share of all tokens, and the victim is busy."""

    kind: StrikeKind
    after_share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Happening:
    """A strike that took place."""

    kind: StrikeKind
    name: str
    at_ns: int
    sessions: int
    """Held by the victim, by its last report."""

    @property
    def sentence(self) -> str:
        """What happened, for people."""
        match self.kind:
            case StrikeKind.PREEMPT_NODE:
                return f"{self.name} told that it ends in {GRACE_NS // NS_PER_S} s"
            case StrikeKind.KILL_NODE | StrikeKind.KILL_ROUTER:
                return f"{self.name} killed with {self.sessions} sessions"
            case StrikeKind.ADD_NODE:
                return f"{self.name} added"


STRIKES: Final = (
    Strike(kind=StrikeKind.PREEMPT_NODE, after_share=0.15),
    Strike(kind=StrikeKind.KILL_NODE, after_share=0.40),
    Strike(kind=StrikeKind.ADD_NODE, after_share=0.50),
    Strike(kind=StrikeKind.KILL_ROUTER, after_share=0.70),
)


class Striker:
    """Chooses the victim whose loss hurts most, and strikes it."""

    def __init__(self, fleet: Fleet, cloud: LocalCloud, *, clock: Clock) -> None:
        self._fleet = fleet
        self._cloud = cloud
        self._clock = clock
        self._leaving: set[str] = set()

    def is_due(self, strike: Strike, load: Load, *, tokens_expected: int) -> bool:
        """Whether it is time, and the victim holds enough for it to mean something."""
        least = round(strike.after_share * tokens_expected)
        if load.tokens < least:
            return False
        if strike.kind is StrikeKind.ADD_NODE:
            return True
        victim = self._victim(strike.kind)
        if victim is None:
            return False
        return victim[1] >= SESSIONS_STRUCK or load.tokens >= least + least // 2

    async def strike(self, strike: Strike) -> Happening | None:
        """Strike now; None if there is nobody to be struck."""
        victim = ("", 0) if strike.kind is StrikeKind.ADD_NODE else self._victim(strike.kind)
        if victim is None:
            return None
        name, sessions = victim
        struck = await self._carry_out(strike.kind, name)
        if struck is None:
            return None
        return Happening(
            kind=strike.kind, name=struck, at_ns=self._clock.now_ns(), sessions=sessions
        )

    async def _carry_out(self, kind: StrikeKind, name: str) -> str | None:
        operation_id = f"demo-{kind.value.replace('_', '-')}-{name or 'node'}"
        match kind:
            case StrikeKind.KILL_ROUTER:
                return self._kill_router(name)
            case StrikeKind.PREEMPT_NODE:
                self._leaving.add(name)
                grace_ms = GRACE_NS // 1_000_000
                request: PreemptNode | KillNode | AddNode = PreemptNode(
                    operation_id=operation_id, node_id=name, grace_ms=grace_ms
                )
            case StrikeKind.KILL_NODE:
                request = KillNode(operation_id=operation_id, node_id=name)
            case StrikeKind.ADD_NODE:
                request = AddNode(operation_id=operation_id)
        answer = await self._cloud.carry_out(request)
        return None if isinstance(answer, CloudRefused) else answer.node_id

    def _kill_router(self, router_id: str) -> str | None:
        for report in self._fleet.view.routers():
            child = self._fleet.child_of(report.process_id)
            if report.router_id == router_id and child is not None:
                child.signal(signal.SIGKILL)
                return router_id
        return None

    def _victim(self, kind: StrikeKind) -> tuple[str, int] | None:
        """Return the node or router whose loss hurts most, and the sessions it holds."""
        if kind is StrikeKind.KILL_ROUTER:
            loads = [(r.router_id, r.sessions_open) for r in self._fleet.view.routers()]
        else:
            loads = self._node_loads()
        busy = [load for load in loads if load[1]]
        return max(busy, key=lambda load: (load[1], load[0]), default=None)

    def _node_loads(self) -> list[tuple[str, int]]:
        """Count for each node the sessions of the replicas that it is part of."""
        workers = self._fleet.view.workers()
        sessions_by_replica = {
            report.position.replica_id: sessions_of(report)
            for report in workers
            if report.position is not None and report.is_serving
        }
        loads: dict[str, int] = {}
        for report in workers:
            if report.node_id is None or report.node_id in self._leaving:
                continue
            if report.position is not None:
                sessions = sessions_by_replica.get(report.position.replica_id, 0)
                loads[report.node_id] = loads.get(report.node_id, 0) + sessions
        return sorted(loads.items())


def sessions_of(report: WorkerReport | RouterReport) -> int:
    """Return the sessions that a process holds, by its report."""
    if isinstance(report, WorkerReport):
        return report.sessions_running + report.sessions_waiting
    return report.sessions_open


def count(happenings: Sequence[Happening], *kinds: StrikeKind) -> int:
    """Count what happened of these kinds."""
    return sum(happening.kind in kinds for happening in happenings)
