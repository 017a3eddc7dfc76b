"""What a migrator knows of a model: its profile's figures, its folder's, or its own."""

from dataclasses import replace
from pathlib import Path

import pytest

from libs.engine.model_config import read_model_config
from libs.engine.model_size import size_of
from libs.kernel.errors import ConfigError
from libs.policy.measured_profile import json_of_measured_profile
from services.migrator.config import MigratorConfig
from services.migrator.known_model import known_model
from tests.unit.policy.test_measured_profile import SIZE, a_measurement

MODEL = Path(__file__).parents[3] / "models" / "tide-tiny"


def test_without_a_profile_the_folder_says_how_many_bytes_there_are() -> None:
    known = known_model(MigratorConfig(model=str(MODEL)))
    assert known.size == size_of(read_model_config(MODEL), bytes_per_parameter=4)
    assert known.prefill_tokens_per_s == MigratorConfig(model="m").prefill_tokens_per_s
    on_gpus = known_model(MigratorConfig(model=str(MODEL), device="cuda"))
    assert on_gpus.size is not None
    assert on_gpus.size.layer_bytes * 2 == known.size.layer_bytes


def test_a_profile_counts_for_bytes_and_speed(tmp_path: Path) -> None:
    file = tmp_path / "profile.json"
    measured = a_measurement()
    file.write_text(json_of_measured_profile(measured))
    known = known_model(MigratorConfig(model=str(MODEL), profile=str(file)))
    assert known.size == SIZE
    assert known.prefill_tokens_per_s == measured.prefill_tokens_per_s


def test_a_model_that_is_not_on_this_machine_is_served_all_the_same(tmp_path: Path) -> None:
    config = MigratorConfig(model=str(tmp_path / "elsewhere"))
    assert known_model(config).size is None
    assert known_model(replace(config, model="", alias="m")).size is None


def test_a_profile_that_is_named_and_missing_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing\.json"):
        known_model(MigratorConfig(model=str(MODEL), profile=str(tmp_path / "missing.json")))
