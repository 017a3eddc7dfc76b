"""What the children of a fleet are started with."""

from pathlib import Path

from libs.contracts.reports import Market
from services.launcher.model_source import ModelSource
from services.launcher.recipes import FleetOptions, PlannedOptions, Recipes

MODEL = ModelSource(folder=Path("models/some"), alias="some")


def recipes(tmp_path: Path, planned: PlannedOptions | None = None) -> Recipes:
    options = FleetOptions(
        model=MODEL, data_folder=tmp_path, planned=planned, ttft_slo_ms=700, tbt_slo_ms=60
    )
    return Recipes(options=options, nats_url="nats://127.0.0.1:1", socket_folder=tmp_path)


def settings_of(children, service: str) -> list:
    return [child.settings for child in children if child.service == service]


def test_workers_aim_for_the_latencies_that_routers_count_by(tmp_path):
    standing = recipes(tmp_path).standing()
    workers = settings_of(standing, "gpu_worker")
    (router,) = settings_of(standing, "online_router")
    assert len(workers) == 2
    for worker in workers:
        assert (worker["ttft_slo_ms"], worker["tbt_slo_ms"]) == ("700", "60")
    assert (router["ttft_slo_ms"], router["tpot_slo_ms"]) == ("700", "60")


def test_every_child_has_a_name_of_its_own(tmp_path):
    planned = PlannedOptions(nodes=2, gpus_per_node=2, planners=2, migrators=2)
    made = recipes(tmp_path, planned)
    children = made.standing()
    for node_id in ("node-1", "node-2"):
        children += made.node(node_id, market=Market.SPOT, zone=None)
    names = [child.name for child in children]
    assert len(names) == len(set(names)) == 3 + 2 + 2 + 2 * (1 + 2)
