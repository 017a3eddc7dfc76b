"""The worker's settings: what they mean and what they refuse."""

from typing import Any

import pytest

from libs.kernel.errors import ConfigError
from libs.runtime.config import read_config
from services.gpu_worker.config import WorkerConfig


def a_config(**settings: str) -> WorkerConfig:
    environment = {f"GPU_WORKER__{name.upper()}": value for name, value in settings.items()}
    return read_config(WorkerConfig, service="gpu_worker", environment=environment)


def test_settings_come_from_the_environment() -> None:
    config = a_config(model="models/x", threads="2", kv_bytes="1_000", drain_ms="3000")
    assert (config.threads, config.kv_bytes, config.drain_ms) == (2, 1000, 3000)


@pytest.mark.parametrize(
    ("settings", "alias"),
    [
        ({"model": "models/Tide.Tiny"}, "tide-tiny"),
        ({"model": "models/tide-tiny/"}, "tide-tiny"),
        ({"model": "owner/Some-Model-1.5B"}, "some-model-1-5b"),
        ({"model": "models/tide-tiny", "alias": "chat"}, "chat"),
    ],
)
def test_the_alias_is_the_models_name_unless_it_is_set(
    settings: dict[str, str], alias: str
) -> None:
    assert a_config(**settings).alias_served == alias


@pytest.mark.parametrize(
    ("settings", "dtype"),
    [
        ({"device": "cpu"}, "float32"),
        ({"device": "cpu", "dtype": "bfloat16"}, "bfloat16"),
        ({"device": "cuda:0"}, "auto"),
    ],
)
def test_a_cpu_computes_in_float32_unless_told_otherwise(
    settings: dict[str, str], dtype: str
) -> None:
    assert a_config(model="m", **settings).engine_dtype == dtype


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({}, "model"),
        ({"model": ""}, "model"),
        ({"model": "m", "threads": "0"}, "threads"),
        ({"model": "m", "threads": "many"}, "threads"),
        ({"model": "m", "dtype": "int3"}, "dtype"),
        ({"model": "m", "step_tokens_max": "8"}, "step_tokens_max"),
        ({"model": "m", "blocks_total": "0"}, "blocks_total"),
        ({"model": "m", "drain_ms": "-1"}, "drain_ms"),
        ({"model": "m", "colour": "red"}, "colour"),
    ],
)
def test_a_wrong_setting_is_refused_by_its_name(settings: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError, match=f"(?i){field}"):
        a_config(**settings)


def test_a_node_named_as_kubernetes_names_it_is_reported_as_its_watcher_names_it() -> None:
    node = "ip-10-0-1-2.eu-central-1.compute.internal"
    config = a_config(model="models/tide-tiny", node_id=node)
    assert config.node_id_reported == "ip-10-0-1-2-eu-central-1-compute-internal"
    assert a_config(model="models/tide-tiny").node_id_reported is None
