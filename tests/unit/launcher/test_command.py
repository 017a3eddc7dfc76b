"""The command's surface: help everywhere, one line per mistake, exit codes as documented."""

import ast
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from libs.contracts.placement import PinnedShape, PinShape
from libs.kernel.errors import EXIT_CONFIG_ERROR, ConfigError
from services.launcher.main import run
from services.launcher.model_source import ModelSource, bundled_model, find_model
from services.launcher.paste import commands_to_paste
from services.launcher.recipes import FleetOptions, threads_per_worker
from services.launcher.service import service_names
from services.launcher.shape import parse_shape
from services.launcher.state_file import (
    HTTP_URL_VARIABLE,
    NATS_URL_VARIABLE,
    FleetState,
    find_nats_url,
)

COMMANDS = [
    "up",
    "demo",
    "status",
    "top",
    "story",
    "chat",
    "complete",
    "preempt",
    "kill",
    "add-node",
    "profile",
    "shape",
    "doctor",
    "service",
    "batch",
    "bench",
]


def a_state(*, launcher_process_id: int) -> FleetState:
    return FleetState(
        nats_url="nats://127.0.0.1:4223",
        http_url=None,
        alias="tide-tiny",
        launcher_process_id=launcher_process_id,
        process_ids={"gpu-worker-1": 1},
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([command, "--help"]) == 0
    assert "Usage" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ["up", "--workers", "0"],
        ["up", "--no-such-option"],
        ["no-such-command"],
        ["up", "--device", "abacus"],
        ["up", "--http-port", "70000"],
        ["up", "--model", "no/such/folder/here"],
        ["service", "no-such-service"],
        ["kill", "worker-1", "--data-dir", "no-such-folder"],
        ["status", "--data-dir", "no-such-folder"],
        ["complete", "x", "--data-dir", "no-such-folder"],
        ["batch", "list", "--data-dir", "no-such-folder"],
        ["bench", "load", "--rate", "5", "--data-dir", "no-such-folder"],
        ["bench", "load", "--http", "http://127.0.0.1:1", "--users", "0"],
        ["bench", "engine", "--peers"],
        ["bench", "soak", "--requests", "3"],
    ],
)
def test_a_wrong_argument_is_told_and_exits_64(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(NATS_URL_VARIABLE, raising=False)
    monkeypatch.delenv(HTTP_URL_VARIABLE, raising=False)
    assert run(arguments) == 64
    told = capsys.readouterr().err
    assert told.strip()
    assert "Traceback" not in told


def test_a_model_folder_without_a_config_is_named_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["up", "--model", str(tmp_path)]) == 64
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert str(tmp_path) in lines[0]


def test_a_data_folder_that_cannot_be_made_is_named_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert run(["up", "--data-dir", str(tmp_path / "file" / "data")]) == 64
    assert len(capsys.readouterr().err.strip().splitlines()[-1:]) == 1


@pytest.mark.parametrize(("url", "exit_code"), [("nats://127.0.0.1:1", 69), ("nats://", 64)])
def test_a_broker_that_cannot_be_reached_is_told_in_one_line(
    url: str, exit_code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["status", "--nats", url]) == exit_code
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_the_bundled_model_is_found_and_is_the_default() -> None:
    assert find_model(None) == find_model("tide-tiny") == bundled_model()
    assert (bundled_model().folder / "model.safetensors").is_file()


def test_a_folder_is_served_under_its_name_as_an_alias(tmp_path: Path) -> None:
    folder = tmp_path / "My Model.v2"
    folder.mkdir()
    (folder / "config.json").write_bytes((bundled_model().folder / "config.json").read_bytes())
    assert find_model(str(folder)) == ModelSource(folder=folder, alias="my-model-v2")


def test_a_family_that_is_not_served_is_refused_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "no_such_family"}')
    with pytest.raises(ConfigError, match="no_such_family"):
        find_model(str(tmp_path))


def test_a_name_that_is_neither_folder_nor_hub_id_is_refused() -> None:
    with pytest.raises(ConfigError, match="owner/name"):
        find_model("nonsense")


def test_workers_and_nodes_exclude_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["up", "--workers", "2", "--nodes", "2"]) == EXIT_CONFIG_ERROR
    assert "give one of them" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["preempt", "node-9"], ["kill", "node-9"], ["add-node"]])
def test_what_a_cloud_does_needs_a_fleet(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*command, "--data-dir", str(tmp_path)]) == EXIT_CONFIG_ERROR
    assert "no fleet runs" in capsys.readouterr().err


def test_a_node_that_is_not_there_is_named_with_those_that_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = replace(a_state(launcher_process_id=os.getpid()), node_ids=["node-1", "node-2"])
    state.write(tmp_path)
    assert run(["preempt", "node-9", "--data-dir", str(tmp_path)]) == EXIT_CONFIG_ERROR
    assert "there is node-1, node-2" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change",
    [{"workers": 0}, {"routers": 0}, {"gateways": -1}, {"offline_queues": -1}, {"http_port": -1}],
)
def test_a_fleet_past_its_bounds_is_refused(change: dict[str, int], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must be"):
        FleetOptions(model=bundled_model(), data_folder=tmp_path, **change)  # type: ignore[arg-type]


def test_workers_share_the_cores_and_leave_one() -> None:
    assert threads_per_worker(2, cores=2) == 1
    assert threads_per_worker(1, cores=8) == 7
    assert threads_per_worker(3, cores=16) == 5


def test_the_state_of_a_living_fleet_is_found_and_that_of_a_dead_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(NATS_URL_VARIABLE, raising=False)
    living = a_state(launcher_process_id=os.getpid())
    living.write(tmp_path)
    assert FleetState.read(tmp_path) == living
    assert find_nats_url(None, tmp_path) == living.nats_url
    FleetState.remove(tmp_path)
    assert FleetState.read(tmp_path) is None
    # 2**22 is past the largest process id that Linux gives out.
    a_state(launcher_process_id=2**22 + 1).write(tmp_path)
    assert FleetState.read(tmp_path) is None
    with pytest.raises(ConfigError, match="tideserve up"):
        find_nats_url(None, tmp_path)


def test_a_broker_is_taken_from_the_option_before_the_environment_before_the_fleet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_state(launcher_process_id=os.getpid()).write(tmp_path)
    monkeypatch.setenv(NATS_URL_VARIABLE, "nats://environment:4222")
    assert find_nats_url("nats://option:4222", tmp_path) == "nats://option:4222"
    assert find_nats_url(None, tmp_path) == "nats://environment:4222"


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"nats_url": 3}', "\x00"])
def test_a_damaged_state_file_is_no_fleet(tmp_path: Path, content: str) -> None:
    (tmp_path / "fleet.json").write_text(content)
    assert FleetState.read(tmp_path) is None


def test_the_commands_to_paste_are_well_formed() -> None:
    text = commands_to_paste(
        nats_url="nats://h:1", http_url="http://h:2", alias="tide-tiny", has_queue=True
    )
    *programs, lines = [part.split("\nEND")[0] for part in text.split("<<'END'\n")[1:]]
    assert len(programs) == 2
    assert json.loads(lines)["body"]["model"] == "tide-tiny"
    for program in programs:
        ast.parse(program)
    body = text.split("-d '")[1].split("'\n")[0]
    assert json.loads(body)["model"] == "tide-tiny"


def test_without_a_gateway_only_the_nats_command_is_printed() -> None:
    text = commands_to_paste(nats_url="nats://h:1", http_url=None, alias="m", has_queue=True)
    assert "curl" not in text
    assert "batch" not in text
    assert "tide.v1.online.m" in text


def test_without_a_queue_no_batch_is_offered() -> None:
    text = commands_to_paste(
        nats_url="nats://h:1", http_url="http://h:2", alias="m", has_queue=False
    )
    assert "curl" in text
    assert "batch" not in text


def test_the_services_that_run_by_themselves_are_known() -> None:
    assert set(service_names()) >= {"gpu_worker", "http_gateway", "online_router"}
    assert "launcher" not in service_names()


@pytest.mark.parametrize("wanted", ["", "2", "2x", "0x1", "2x100", "9999x1", "2x1x1", "axb"])
def test_what_is_no_shape_is_one_line(wanted: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["shape", wanted, "--nats", "nats://127.0.0.1:1"]) == EXIT_CONFIG_ERROR
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_shapes_are_stages_times_shards() -> None:
    assert parse_shape("2x4") == PinShape(shape=PinnedShape(stages=2, shards=4))
    assert parse_shape("auto") == PinShape()
