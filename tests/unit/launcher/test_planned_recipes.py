"""What the processes of a fleet are started with."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from libs.contracts.reports import Market
from libs.kernel.errors import ConfigError
from services.launcher.child_process import ChildOptions
from services.launcher.model_source import ModelSource
from services.launcher.recipes import FleetOptions, PlannedOptions, Recipes


def recipes(planned: PlannedOptions | None = None) -> Recipes:
    options = FleetOptions(
        model=ModelSource(folder=Path("model"), alias="tide"),
        data_folder=Path("data"),
        planned=planned,
        ttft_slo_ms=700,
        tbt_slo_ms=60,
    )
    return Recipes(options=options, nats_url="nats://127.0.0.1:1", socket_folder=Path("s"))


def settings_of(children: Sequence[ChildOptions], service: str) -> list[Mapping[str, str]]:
    return [child.settings for child in children if child.service == service]


def test_workers_aim_for_the_latencies_that_routers_count_by() -> None:
    standing = recipes().standing()
    workers = settings_of(standing, "gpu_worker")
    (router,) = settings_of(standing, "online_router")
    assert len(workers) == 2
    for worker in workers:
        assert (worker["ttft_slo_ms"], worker["tbt_slo_ms"]) == ("700", "60")
    assert (router["ttft_slo_ms"], router["tpot_slo_ms"]) == ("700", "60")


def test_every_process_has_a_name_of_its_own() -> None:
    planned = recipes(PlannedOptions(nodes=2, gpus_per_node=2, planners=2, migrators=2))
    children = planned.standing()
    for node_id in ("node-1", "node-2"):
        children += planned.node(node_id, market=Market.SPOT, zone=None)
    names = [child.name for child in children]
    assert len(names) == len(set(names)) == 3 + 2 + 2 + 2 * (1 + 2)


def test_the_planner_waits_for_the_nodes_that_start_with_it_and_asks_for_none() -> None:
    (planner,) = settings_of(recipes(PlannedOptions(nodes=3)).standing(), "planner")
    assert planner["nodes_expected"] == "3"
    assert "provisioner" not in planner


def test_a_planner_that_provisions_keeps_the_nodes_of_the_start_and_knows_its_bound() -> None:
    planned = PlannedOptions(nodes=3, provisioned_nodes_max=5)
    (planner,) = settings_of(recipes(planned).standing(), "planner")
    assert planner["provisioner"] == "local"
    assert (planner["nodes_min"], planner["nodes_max"]) == ("3", "5")


def test_fewer_nodes_than_are_started_cannot_be_provisioned() -> None:
    PlannedOptions(nodes=3, provisioned_nodes_max=3)
    with pytest.raises(ConfigError, match="--provision"):
        PlannedOptions(nodes=3, provisioned_nodes_max=2)
