"""Nodes on one machine: the launcher plays the cloud and is asked for each."""

from collections.abc import Sequence
from typing import Final

import structlog

from libs.contracts import subjects
from libs.contracts.local_cloud import (
    CLOUD_ANSWERS,
    AddNode,
    CloudRefused,
    FromCloud,
    PreemptNode,
    ToCloud,
)
from libs.contracts.reports import Market
from libs.contracts.wire import encode
from libs.kernel.errors import ContractViolation, Unavailable
from libs.kernel.units import NS_PER_MS, NS_PER_S
from libs.runtime.bus import CoreBus
from libs.runtime.clock import Clock
from services.planner.commands import PublishCapacity

ANSWER_TIMEOUT_NS: Final = 30 * NS_PER_S
"""Starting a node's processes takes the launcher seconds on a busy machine."""
JOIN_NS_MAX: Final = 180 * NS_PER_S
"""A node that has not reported by then counts as failed, and another is asked for."""
RELEASE_GRACE_NS: Final = 30 * NS_PER_S
RETRY_AFTER_NS: Final = 5 * NS_PER_S

_log = structlog.get_logger(__name__)


class LocalProvisioner:
    """Asks the launcher for the nodes that are missing, and to take back those that are too many.

    A node that was asked for and has not reported yet counts as there, so that a slow start is not
    answered with more and more of them.
    """

    def __init__(self, bus: CoreBus, clock: Clock, *, planner_id: str) -> None:
        self._bus = bus
        self._clock = clock
        self._planner_id = planner_id
        self._operations = 0
        self._joining: dict[str, tuple[Market, int]] = {}
        """Nodes asked for, with their market and since when."""

    async def provide(self, capacity: PublishCapacity) -> None:
        """Add what is missing of each market, then release what is named. Raises: Unavailable."""
        wanted = capacity.wanted
        self._forget_joined([*capacity.spot_node_ids, *capacity.on_demand_node_ids])
        zone = next(iter(wanted.zones_preferred), None)
        for market, want, have in (
            (Market.SPOT, wanted.spot_nodes, len(capacity.spot_node_ids)),
            (Market.ON_DEMAND, wanted.on_demand_nodes, len(capacity.on_demand_node_ids)),
        ):
            joining = sum(other is market for other, _ in self._joining.values())
            for _ in range(want - have - joining):
                node_id = await self._add(market, zone=zone)
                if node_id is None:
                    break
                self._joining[node_id] = (market, self._clock.now_ns())
        for node_id in wanted.nodes_to_release:
            await self._ask(
                PreemptNode(
                    operation_id=f"release-{node_id}"[:64],
                    node_id=node_id,
                    grace_ms=RELEASE_GRACE_NS // NS_PER_MS,
                )
            )

    async def close(self) -> None:
        """Nothing is held: the bus belongs to the planner."""

    async def _add(self, market: Market, *, zone: str | None) -> str | None:
        self._operations += 1
        answer = await self._ask(
            AddNode(
                operation_id=f"{self._planner_id[:48]}-add-{self._operations}",
                market=market,
                zone=zone,
            )
        )
        return None if isinstance(answer, CloudRefused) else answer.node_id

    async def _ask(self, request: ToCloud) -> FromCloud:
        reply = await self._bus.request(
            subjects.LOCAL_CLOUD, encode(request), timeout_ns=ANSWER_TIMEOUT_NS
        )
        try:
            answer = CLOUD_ANSWERS.decode(reply.payload)
        except ContractViolation as violation:
            raise Unavailable(f"launcher: {violation}", retry_after_ns=RETRY_AFTER_NS) from None
        if isinstance(answer, CloudRefused):
            _log.warning("node_refused", operation_id=request.operation_id, why=answer.message)
        return answer

    def _forget_joined(self, node_ids: Sequence[str]) -> None:
        now_ns = self._clock.now_ns()
        for node_id, (_, asked_at_ns) in list(self._joining.items()):
            if node_id in node_ids or now_ns - asked_at_ns > JOIN_NS_MAX:
                del self._joining[node_id]
