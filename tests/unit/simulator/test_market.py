"""Nodes are bought as wanted, paid for from the asking on, and lost as the trace says."""

from dataclasses import dataclass, field, replace

import pytest

from libs.contracts.placement import CapacityWanted
from libs.contracts.reports import Market
from libs.kernel.units import NS_PER_S
from libs.sim.world import World
from services.planner.commands import PublishCapacity
from services.simulator.spot.market import RELEASE_GRACE_NS, SpotMarket
from services.simulator.spot.setting import PolicyName, Setting, run_options
from services.simulator.spot.trace import NodeSpan, NodeTrace

LAUNCH_S = 120
GRACE_S = 30


@dataclass
class Cloud:
    """A market, and what it did to nodes; wishes count those that are there and stay."""

    world: World = field(default_factory=lambda: World(seed=1, actions_max=10_000))
    happened: list[tuple[float, str, str]] = field(default_factory=list)
    here: dict[str, Market] = field(default_factory=dict)

    def sell(self, *spans: NodeSpan) -> SpotMarket:
        options = run_options(Setting(policy=PolicyName.TIDESERVE))
        trace = NodeTrace(name="offers", spans=spans, end_at_ns=1_000 * NS_PER_S)
        return SpotMarket(self.world, self, replace(options, trace=trace))

    def want(
        self, market: SpotMarket, *, spot: int, on_demand: int = 0, release: tuple[str, ...] = ()
    ) -> None:
        wanted = CapacityWanted(
            alias="a",
            plan_revision=1,
            spot_nodes=spot,
            on_demand_nodes=on_demand,
            nodes_to_release=release,
        )
        market.provide(
            PublishCapacity(
                wanted=wanted,
                spot_node_ids=self.of(Market.SPOT),
                on_demand_node_ids=self.of(Market.ON_DEMAND),
                cause_id="test",
            )
        )

    def of(self, market: Market) -> tuple[str, ...]:
        return tuple(node_id for node_id, its in self.here.items() if its is market)

    def pass_s(self, seconds: int) -> None:
        ends_at_ns = self.world.now_ns + seconds * NS_PER_S
        self.world.after(seconds * NS_PER_S, lambda: None)
        self.world.run(until_ns=ends_at_ns, is_done=lambda: False)

    def add(self, node_id: str, *, market: Market) -> None:
        self.here[node_id] = market
        self.happened.append((self.world.now_ns / NS_PER_S, "comes", node_id))

    def warn(self, node_id: str, *, ends_at_ns: int) -> None:
        del self.here[node_id]
        self.happened.append((self.world.now_ns / NS_PER_S, "has notice", node_id))

    def end(self, node_id: str) -> None:
        self.happened.append((self.world.now_ns / NS_PER_S, "ends", node_id))


def lasting(node_id: str, *, gone_at_s: int | None = None, from_s: int = 0) -> NodeSpan:
    gone_at_ns = None if gone_at_s is None else gone_at_s * NS_PER_S
    return NodeSpan(node_id=node_id, usable_at_ns=from_s * NS_PER_S, gone_at_ns=gone_at_ns)


def test_what_is_asked_for_comes_after_a_launch_and_is_asked_for_once() -> None:
    cloud = Cloud()
    market = cloud.sell(lasting("a"), lasting("b"), lasting("c"))
    market.begin_trace()
    for _ in range(3):
        cloud.want(market, spot=2)
    cloud.pass_s(LAUNCH_S - 1)
    assert cloud.happened == []
    cloud.pass_s(1)
    assert [what for _, what, _ in cloud.happened] == ["comes", "comes"]
    assert market.paid_ns(Market.ON_DEMAND) == 0


def test_spot_is_sold_only_as_far_as_the_trace_offers_it() -> None:
    cloud = Cloud()
    market = cloud.sell(lasting("a"), lasting("b", from_s=50))
    market.begin_trace()
    cloud.want(market, spot=5, on_demand=1)
    cloud.pass_s(LAUNCH_S)
    assert sorted(cloud.here.values()) == [Market.ON_DEMAND, Market.SPOT]
    cloud.want(market, spot=5, on_demand=1)
    cloud.pass_s(LAUNCH_S)
    assert len(cloud.of(Market.SPOT)) == 2


def test_a_node_is_paid_for_from_the_asking_until_it_is_gone() -> None:
    cloud = Cloud()
    market = cloud.sell(lasting("a", gone_at_s=500))
    market.begin_trace()
    cloud.pass_s(100)
    cloud.want(market, spot=1)
    cloud.pass_s(900)
    assert market.paid_ns(Market.SPOT) == 400 * NS_PER_S
    assert [(at, what) for at, what, _ in cloud.happened] == [
        (100 + LAUNCH_S, "comes"), (500 - GRACE_S, "has notice"), (500, "ends"),
    ]  # fmt: skip


def test_a_node_that_is_given_back_ends_after_its_grace_and_can_be_had_again() -> None:
    cloud = Cloud()
    market = cloud.sell(lasting("a"))
    market.begin_trace()
    cloud.want(market, spot=1)
    cloud.pass_s(200)
    (first,) = cloud.here
    cloud.want(market, spot=0, release=(first,))
    cloud.want(market, spot=1)
    assert cloud.here == {}
    cloud.pass_s(RELEASE_GRACE_NS // NS_PER_S)
    cloud.want(market, spot=1)
    cloud.pass_s(LAUNCH_S)
    (second,) = cloud.here
    assert second != first


def test_a_node_that_is_taken_while_it_launches_never_comes() -> None:
    cloud = Cloud()
    market = cloud.sell(lasting("a", gone_at_s=60))
    market.begin_trace()
    cloud.want(market, spot=1)
    cloud.pass_s(900)
    assert cloud.happened == []
    assert market.paid_ns(Market.SPOT) == (60 - GRACE_S) * NS_PER_S


@pytest.mark.parametrize("spot", [0, 1])
def test_what_is_asked_for_before_the_trace_is_there_at_once_and_paid_from_its_beginning(
    spot: int,
) -> None:
    cloud = Cloud()
    market = cloud.sell(lasting("a"))
    cloud.want(market, spot=spot)
    cloud.pass_s(10)
    assert len(cloud.here) == spot
    market.begin_trace()
    cloud.pass_s(1_000)
    assert market.paid_ns(Market.SPOT) == spot * 1_000 * NS_PER_S
