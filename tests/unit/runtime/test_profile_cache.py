"""Measured profiles: kept by model and hardware, found again, and never in the way."""

from dataclasses import replace
from pathlib import Path

import pytest

from libs.engine.model_size import model_digest
from libs.kernel.errors import ConfigError
from libs.policy.latency_model import LatencyModel
from libs.policy.measured_profile import Hardware, MeasuredProfile
from libs.runtime.profile_cache import (
    AUTO,
    ProfileCache,
    cache_folder,
    profile_file,
    read_measured,
)

MODEL = Path(__file__).parents[3] / "models" / "tide-tiny"
ONE_CORE = Hardware(device="cpu", name="a processor", threads=1, dtype="float32")


def a_measurement(hardware: Hardware = ONE_CORE, *, day: int = 1) -> MeasuredProfile:
    return MeasuredProfile(
        model="tide-tiny",
        model_digest=model_digest(MODEL),
        hardware=hardware,
        latency=LatencyModel(
            step_ns=2e6, row_ns=2e4, pair_prefilled_ns=80, token_attended_ns=500, sequence_ns=8e4
        ),
        error=0.04,
        step_tokens_max=512,
        context_tokens_max=2048,
        size=None,
        rounds=5,
        measured_at=f"2026-01-{day:02}T00:00:00+00:00",
    )


def test_the_cache_lies_where_the_user_says(tmp_path: Path) -> None:
    given = cache_folder({"XDG_CACHE_HOME": str(tmp_path)})
    assert given == tmp_path / "tideserve" / "profiles"
    for environment in ({}, {"XDG_CACHE_HOME": ""}, {"XDG_CACHE_HOME": "relative"}):
        assert cache_folder(environment) == Path.home() / ".cache" / "tideserve" / "profiles"


def test_a_profile_is_found_on_exactly_its_hardware(tmp_path: Path) -> None:
    cache = ProfileCache(folder=tmp_path / "new")
    two_cores = replace(ONE_CORE, threads=2)
    for hardware in (ONE_CORE, two_cores):
        cache.write(a_measurement(hardware))
    found = cache.find(model_digest(MODEL), two_cores)
    assert found is not None
    assert found.profile.hardware == two_cores
    assert cache.find(model_digest(MODEL), replace(ONE_CORE, dtype="bfloat16")) is None
    assert cache.find("f" * 16, ONE_CORE) is None


def test_measuring_again_replaces_the_profile(tmp_path: Path) -> None:
    cache = ProfileCache(folder=tmp_path)
    files = {cache.write(a_measurement(day=day)) for day in (1, 2)}
    assert len(files) == len(list(tmp_path.iterdir())) == 1
    assert read_measured(files.pop()).measured_at.startswith("2026-01-02")


def test_a_damaged_file_is_passed_over(tmp_path: Path) -> None:
    cache = ProfileCache(folder=tmp_path)
    cache.write(a_measurement())
    (tmp_path / f"{model_digest(MODEL)}-damaged.json").write_text("{")
    assert cache.find_latest(model_digest(MODEL), device="cpu") is not None


def test_auto_means_the_latest_on_such_a_device_or_nothing(tmp_path: Path) -> None:
    cache = ProfileCache(folder=tmp_path)
    assert profile_file(AUTO, model=MODEL, device="cpu", cache=cache) is None
    cache.write(a_measurement(day=1))
    latest = cache.write(a_measurement(replace(ONE_CORE, threads=8), day=3))
    assert profile_file(AUTO, model=MODEL, device="cpu", cache=cache) == latest
    of_one_core = profile_file(AUTO, model=MODEL, device="cpu", threads=1, cache=cache)
    assert of_one_core not in (None, latest)
    assert profile_file(AUTO, model=MODEL, device="cuda", cache=cache) is None
    assert profile_file(AUTO, model=tmp_path / "nowhere", device="cpu", cache=cache) is None


def test_a_file_that_is_named_must_be_readable(tmp_path: Path) -> None:
    named = profile_file(str(tmp_path / "p.json"), model=MODEL, device="cpu")
    assert named == tmp_path / "p.json"
    with pytest.raises(ConfigError, match=r"p\.json"):
        read_measured(named)


def test_another_config_is_another_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((MODEL / "config.json").read_bytes() + b" ")
    assert model_digest(tmp_path) != model_digest(MODEL)
