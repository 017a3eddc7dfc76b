"""Which nodes to ask for: spot with some to spare, on-demand only for what spot does not bring.

Source: SkyServe's SpotHedge (EuroSys 2025), section 4. After a preemption another follows in the
same zone within minutes in 83 to 97 % of cases, so a zone that preempted is shunned until the
others fail, too.

    spot      N_tar + N_extra
    on-demand max(0, N_tar - spot ready)
    zones     preempted: to the shunned; launched: to the good; fewer than two good: all are good

Departs from it in what on-demand fills in: the paper has it replace the spare nodes, too. Those are
there because spot nodes are taken; an on-demand node is not, and one that is asked for whenever a
spare has to step in comes no sooner than the next spot node, at twice its price.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

ZONES_GOOD_MIN = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class CapacityMix:
    """How many nodes of each kind there should be, those that exist included."""

    spot_nodes: int
    on_demand_nodes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ZoneBoard:
    """What is known of the zones; each is on one of the two lists."""

    good: tuple[str, ...] = ()
    shunned: tuple[str, ...] = ()

    def seen(self, zone: str) -> "ZoneBoard":
        """Add a zone that is new; what is known stays."""
        if zone in self.good or zone in self.shunned:
            return self
        return replace(self, good=tuple(sorted((*self.good, zone))))

    def launched(self, zone: str) -> "ZoneBoard":
        """A node came up there: the zone is good again."""
        return ZoneBoard(
            good=tuple(sorted({*self.good, zone})),
            shunned=tuple(z for z in self.shunned if z != zone),
        )

    def preempted(self, zone: str) -> "ZoneBoard":
        """A node was taken away there: shun the zone while two others are good."""
        good = tuple(z for z in self.good if z != zone)
        shunned = tuple(sorted({*self.shunned, zone}))
        if len(good) < ZONES_GOOD_MIN:
            return ZoneBoard(good=tuple(sorted({*good, *shunned})))
        return ZoneBoard(good=good, shunned=shunned)

    def preferred(
        self, *, nodes: Mapping[str, int], usd_per_hour: Mapping[str, float] | None = None
    ) -> tuple[str, ...]:
        """Return the good zones, fewest nodes first, then cheapest, then by name."""
        prices = usd_per_hour or {}
        return tuple(sorted(self.good, key=lambda z: (nodes.get(z, 0), prices.get(z, 0.0), z)))


def mix(*, nodes_needed: int, nodes_extra: int, spot_ready: int) -> CapacityMix:
    """Decide how many nodes of each kind to have; on-demand fills in while spot is missing."""
    return CapacityMix(
        spot_nodes=nodes_needed + nodes_extra,
        on_demand_nodes=max(0, nodes_needed - spot_ready),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnedNode:
    """A node that exists and stays."""

    node_id: str
    is_spot: bool
    is_placed: bool
    """Whether the placement uses any of its workers."""


def nodes_to_release(nodes: Sequence[OwnedNode], wanted: CapacityMix) -> tuple[str, ...]:
    """Choose what is too much: on-demand first as it is dear, idle before placed, then by name."""
    surplus: list[str] = []
    for is_spot, keep in ((False, wanted.on_demand_nodes), (True, wanted.spot_nodes)):
        own = [node for node in nodes if node.is_spot is is_spot]
        own.sort(key=lambda node: (node.is_placed, node.node_id))
        surplus += [node.node_id for node in own[: max(0, len(own) - keep)]]
    return tuple(surplus)
