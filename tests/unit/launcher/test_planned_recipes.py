"""What the processes of a planned fleet are told."""

from pathlib import Path

import pytest

from libs.kernel.errors import ConfigError
from services.launcher.model_source import ModelSource
from services.launcher.recipes import FleetOptions, PlannedOptions, Recipes


def planner_settings(planned: PlannedOptions) -> dict[str, str]:
    options = FleetOptions(
        model=ModelSource(folder=Path("model"), alias="tide"),
        data_folder=Path("data"),
        planned=planned,
    )
    recipes = Recipes(options=options, nats_url="nats://127.0.0.1:1", socket_folder=Path("s"))
    [planner] = [child for child in recipes.standing() if child.service == "planner"]
    return dict(planner.settings)


def test_the_planner_waits_for_the_nodes_that_start_with_it_and_asks_for_none() -> None:
    settings = planner_settings(PlannedOptions(nodes=3))
    assert settings["nodes_expected"] == "3"
    assert "provisioner" not in settings


def test_a_planner_that_provisions_keeps_the_nodes_of_the_start_and_knows_its_bound() -> None:
    settings = planner_settings(PlannedOptions(nodes=3, provisioned_nodes_max=5))
    assert settings["provisioner"] == "local"
    assert (settings["nodes_min"], settings["nodes_max"]) == ("3", "5")


def test_fewer_nodes_than_are_started_cannot_be_provisioned() -> None:
    PlannedOptions(nodes=3, provisioned_nodes_max=3)
    with pytest.raises(ConfigError, match="--provision"):
        PlannedOptions(nodes=3, provisioned_nodes_max=2)
