"""The parts of a what-if: scenario, zones, demand, histogram, cloud."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from libs.contracts.placement import CapacityWanted
from libs.contracts.reports import Market
from libs.kernel.errors import ConfigError
from libs.kernel.rng import Rng
from libs.kernel.units import NS_PER_S
from libs.sim.world import World
from services.planner.commands import PublishCapacity
from services.simulator.what_if.cloud import GRACE_NS, CellCloud
from services.simulator.what_if.demand import arrivals_of, requests_per_s_at
from services.simulator.what_if.histogram import Histogram
from services.simulator.what_if.scenario import HOUR_NS, Scenario
from services.simulator.what_if.zones import ZoneCapacity, zones_of

LAUNCH_NS = 120 * NS_PER_S


def a_scenario(**changes: float | str) -> Scenario:
    return Scenario(**{"gpus": 1_000, "requests_per_day": 1e6, **changes})  # type: ignore[arg-type]


# ---------------------------------------------------------------------- scenario


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"gpus": 0}, "gpus"),
        ({"gpus": 8}, "gpus: gpt-20b needs at least 12"),
        ({"requests_per_day": 0}, "requests per day"),
        ({"requests_per_day": float("nan")}, "requests per day"),
        ({"hours": -1}, "hours"),
        ({"peak": 3}, "peak"),
        ({"model": "gpt-9"}, "model: no 'gpt-9'"),
        ({"hardware": "abacus"}, "hardware: no 'abacus'"),
        ({"slo_s": 0}, "SLO"),
    ],
)
def test_a_wrong_scenario_is_one_error_that_names_the_argument(
    changes: dict[str, float | str], named: str
) -> None:
    with pytest.raises(ConfigError, match=named):
        a_scenario(**changes)


def test_cells_share_all_gpus_and_none_is_larger_than_asked() -> None:
    scenario = a_scenario(gpus=10_000, cell_gpus=96)
    assert scenario.cells == 105
    assert scenario.nodes_per_cell * scenario.node.gpus_per_node <= 96
    assert scenario.requests_per_s_of_cell * scenario.cells * 86_400 == pytest.approx(1e6)


# ---------------------------------------------------------------------- zones


def test_a_zone_without_shortages_always_has_everything() -> None:
    zones = zones_of(a_scenario(shortages_per_day=0), region=0)
    assert [zone.steps for zone in zones] == [((0, 1.0),)] * 3


def test_shortages_reach_neighbours_and_always_end() -> None:
    zones = zones_of(a_scenario(hours=240), region=0)
    changes = [{at_ns for at_ns, share in zone.steps if share < 1} for zone in zones]
    together = changes[0] & changes[1]
    assert together
    assert changes[0] - changes[1] - changes[2]
    for zone in zones:
        assert all(0 < share <= 1 for _, share in zone.steps)
        assert [at_ns for at_ns, _ in zone.steps] == sorted({at_ns for at_ns, _ in zone.steps})
        assert zone.steps[-1][1] == 1


def test_regions_run_short_independently() -> None:
    scenario = a_scenario()
    one, other = zones_of(scenario, region=0), zones_of(scenario, region=1)
    assert {zone.name for zone in one}.isdisjoint(zone.name for zone in other)
    assert [zone.steps for zone in one] != [zone.steps for zone in other]


# ---------------------------------------------------------------------- demand


def test_demand_follows_the_day_and_comes_to_what_was_asked() -> None:
    scenario = a_scenario(gpus=100, requests_per_day=1e4)
    assert requests_per_s_at(scenario, 12 * HOUR_NS) == pytest.approx(
        3 * requests_per_s_at(scenario, 0)
    )
    arrivals = list(arrivals_of(scenario, cell=0))
    assert len(arrivals) == pytest.approx(1e4, rel=0.04)
    assert arrivals == sorted(arrivals)
    by_night = sum(at_ns < 6 * HOUR_NS or at_ns > 18 * HOUR_NS for at_ns in arrivals)
    assert by_night < 0.4 * len(arrivals)


def test_each_cell_has_its_own_arrivals() -> None:
    scenario = a_scenario(hours=0.1)
    assert list(arrivals_of(scenario, cell=0)) != list(arrivals_of(scenario, cell=1))


# ---------------------------------------------------------------------- histogram


def test_a_percentile_is_too_low_by_less_than_one_in_128() -> None:
    rng, histogram = Rng(1), Histogram()
    values = sorted(round(rng.lognormvariate(9, 2)) for _ in range(5_000))
    for value in values:
        histogram.add(value)
    for share in (0.001, 0.5, 0.9, 0.99, 0.999, 1.0):
        exact = values[max(0, -(-round(share * 1_000) * len(values) // 1_000) - 1)]
        assert exact * 127 / 128 < histogram.percentile(share) <= exact


def test_merged_histograms_count_what_both_counted() -> None:
    one, other, both = Histogram(), Histogram(), Histogram()
    for value in range(2_000):
        (one if value % 3 else other).add(value * value)
        both.add(value * value)
    one.merge(other)
    assert one == both


def test_nothing_has_a_percentile_of_nothing() -> None:
    assert Histogram().percentile(0.99) == 0


# ---------------------------------------------------------------------- cloud


@dataclass
class FleetOfNames:
    """Remembers what a cloud does with nodes."""

    world: World
    present: dict[str, tuple[Market, str | None]] = field(default_factory=dict)
    warned: dict[str, int] = field(default_factory=dict)

    def add(self, node_id: str, *, market: Market, zone: str | None = None) -> None:
        self.present[node_id] = (market, zone)

    def warn(self, node_id: str, *, ends_at_ns: int) -> None:
        assert node_id in self.present
        self.warned[node_id] = ends_at_ns

    def end(self, node_id: str) -> None:
        assert self.warned[node_id] == self.world.now_ns
        del self.present[node_id]

    def of(self, market: Market) -> list[str]:
        return [node_id for node_id, (of, _) in self.present.items() if of is market]


def a_cloud(*steps: Sequence[tuple[int, float]], nodes_per_zone: int = 4) -> tuple[
    World, FleetOfNames, CellCloud
]:  # fmt: skip
    world = World(seed=1, actions_max=10_000)
    fleet = FleetOfNames(world)
    zones = [ZoneCapacity(name=f"zone-{n}", steps=tuple(each)) for n, each in enumerate(steps)]
    cloud = CellCloud(
        world, fleet, zones=zones, nodes_per_zone=nodes_per_zone,
        nodes_max=10, launch_ns=LAUNCH_NS, rng=Rng(1),
    )  # fmt: skip
    return world, fleet, cloud


def wish(*, spot: int = 0, on_demand: int = 0, release: tuple[str, ...] = ()) -> PublishCapacity:
    wanted = CapacityWanted(
        alias="m", plan_revision=1, spot_nodes=spot, on_demand_nodes=on_demand,
        zones_preferred=("zone-1",), nodes_to_release=release,
    )  # fmt: skip
    return PublishCapacity(wanted=wanted, spot_node_ids=(), on_demand_node_ids=(), cause_id="test")


def pass_until(world: World, at_ns: int) -> None:
    world.after(at_ns - world.now_ns, lambda: None)
    world.run(until_ns=at_ns, is_done=lambda: False)


def test_a_wish_is_met_once_however_often_it_is_said() -> None:
    world, fleet, cloud = a_cloud([(0, 1.0)], [(0, 1.0)])
    cloud.begin_trace()
    for _ in range(3):
        cloud.provide(wish(spot=6, on_demand=1))
    pass_until(world, LAUNCH_NS)
    assert len(fleet.of(Market.SPOT)) == 6
    assert len(fleet.of(Market.ON_DEMAND)) == 1
    zones = [zone for market, zone in fleet.present.values() if market is Market.SPOT]
    assert sorted(map(str, zones)) == ["zone-0"] * 2 + ["zone-1"] * 4  # the preferred one first


def test_spot_goes_as_far_as_capacity_and_on_demand_is_never_short() -> None:
    world, fleet, cloud = a_cloud([(0, 0.5)], [(0, 0.25)])
    cloud.begin_trace()
    cloud.provide(wish(spot=9, on_demand=7))
    pass_until(world, LAUNCH_NS)
    assert len(fleet.of(Market.SPOT)) == 2 + 1
    assert len(fleet.of(Market.ON_DEMAND)) == 7


def test_no_more_nodes_are_rented_at_a_time_than_asked_for() -> None:
    world, fleet, cloud = a_cloud([(0, 1.0)], [(0, 1.0)])
    cloud.begin_trace()
    cloud.provide(wish(spot=8, on_demand=8))
    pass_until(world, LAUNCH_NS)
    assert len(fleet.of(Market.SPOT)) == 8
    assert len(fleet.of(Market.ON_DEMAND)) == 2


def test_a_shortage_cancels_launches_before_it_takes_nodes() -> None:
    world, fleet, cloud = a_cloud([(0, 1.0), (600 * NS_PER_S, 0.5)], nodes_per_zone=8)
    cloud.start_with(6)
    cloud.begin_trace()
    pass_until(world, 590 * NS_PER_S)
    cloud.provide(wish(spot=7))
    pass_until(world, 601 * NS_PER_S)
    assert len(fleet.warned) == 2
    pass_until(world, 600 * NS_PER_S + GRACE_NS + LAUNCH_NS)
    assert len(fleet.present) == 4
    assert cloud.bill.nodes_preempted == 2


def test_what_is_given_back_gets_notice_and_costs_until_its_end() -> None:
    world, fleet, cloud = a_cloud([(0, 1.0)])
    cloud.start_with(2)
    cloud.begin_trace()
    pass_until(world, 100 * NS_PER_S)
    gone = next(iter(fleet.present))
    cloud.provide(wish(spot=1, release=(gone,)))
    pass_until(world, 200 * NS_PER_S)
    assert gone not in fleet.present
    paid_ns = cloud.paid_ns(Market.SPOT)
    bill = cloud.close(end_at_ns=200 * NS_PER_S)
    assert paid_ns == bill.spot_node_ns
    assert bill.spot_node_ns == (100 * NS_PER_S + GRACE_NS) + 200 * NS_PER_S
    assert bill.on_demand_node_ns == 0
    assert bill.nodes_returned == 1


def test_a_fleet_that_spot_cannot_hold_begins_on_demand() -> None:
    _, fleet, cloud = a_cloud([(0, 1.0)], nodes_per_zone=0)
    cloud.start_with(3)
    assert len(fleet.of(Market.ON_DEMAND)) == 3
