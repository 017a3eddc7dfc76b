"""`tideserve profile` on a real engine, and the worker that finds what it wrote."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from libs.policy.latency_model import LatencyModel, StepWork
from libs.runtime.profile_cache import AUTO, CACHE_VARIABLE, profile_file, read_measured
from services.gpu_worker.config import WorkerConfig
from services.gpu_worker.engine_setup import engine_options
from services.launcher.main import run
from services.launcher.model_source import bundled_model


def step_latency(config: WorkerConfig) -> LatencyModel:
    return engine_options(config).coserve.latency


PROMPT = StepWork().with_prefill(tokens=256, tokens_before=0)


def test_a_profile_is_measured_kept_and_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    folder = bundled_model().folder
    config = WorkerConfig(model=str(folder), profile=AUTO)
    assumed = step_latency(config)
    assert assumed == step_latency(replace(config, profile=None))

    assert run(["profile", "--seconds", "1", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    file = Path(shown["file"])
    assert file.is_relative_to(tmp_path)
    measured = read_measured(file)
    assert shown["profile"]["rounds"] == measured.rounds >= 3

    assert profile_file(AUTO, model=folder, device="cpu") == file
    assert step_latency(config) == measured.latency != assumed
    assert step_latency(replace(config, threads=2)) == assumed
    assert step_latency(replace(config, profile=str(file), threads=2)) == measured.latency
    # Not a figure of speed, which a busy machine would falsify: more work takes longer.
    one = measured.latency.predict_ns(StepWork().with_decode(tokens_before=16))
    assert 0 < one < measured.latency.predict_ns(PROMPT)


def test_a_profile_goes_to_the_file_that_is_named(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    assert run(["profile", "--seconds", "1", "--out", str(file)]) == 0
    assert read_measured(file).model == "tide-tiny"


def test_a_device_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["profile", "--device", "abacus"]) == 64
    assert "--device" in capsys.readouterr().err
