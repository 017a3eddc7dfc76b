"""The `tideserve` command as a person uses it: processes, pasted commands, signals."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from services.launcher.model_source import bundled_model
from services.launcher.paste import batch_command, curl_command, nats_command, openai_command
from services.launcher.state_file import is_alive

TIDESERVE = [sys.executable, "-m", "services.launcher"]
READY_S = 150.0
COMMAND_S = 60.0
README = Path(__file__).resolve().parents[2] / "README.md"
PROGRAMS_IN_README = 3


@dataclass
class Up:
    """A running `tideserve up --json`."""

    process: subprocess.Popen[str]
    data_folder: Path
    announced: dict[str, Any]
    children: list[int] = field(default_factory=list)

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return tideserve(*arguments, "--data-dir", str(self.data_folder))


def tideserve(*arguments: str, timeout_s: float = COMMAND_S) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*TIDESERVE, *arguments], capture_output=True, text=True, timeout=timeout_s
    )


def start_up(data_folder: Path, *options: str) -> Up:
    given = ["--json", "--http-port", "0", "--data-dir", str(data_folder), *options]
    process = subprocess.Popen(
        [*TIDESERVE, "up", *given],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    with process.stdout as announcement:
        line = announcement.readline()
    assert line, f"up ended with exit code {process.wait()}"
    announced = json.loads(line)
    return Up(process, data_folder, announced, list(announced["process_ids"].values()))


def wait_until_gone(process_ids: list[int]) -> None:
    deadline = time.monotonic() + 30
    while any(is_alive(process_id) for process_id in process_ids):
        assert time.monotonic() < deadline, "orphans are left"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    running = start_up(tmp_path_factory.mktemp("up"))
    yield running
    if running.process.poll() is None:
        running.process.send_signal(signal.SIGINT)
        running.process.wait(timeout=60)


def test_up_announces_where_it_is(up: Up) -> None:
    assert up.announced["nats_url"].startswith("nats://127.0.0.1:")
    assert up.announced["http_url"].startswith("http://127.0.0.1:")
    assert up.announced["model"] == "tide-tiny"
    assert sorted(up.announced["process_ids"]) == [
        "gpu-worker-1",
        "gpu-worker-2",
        "http-gateway-1",
        "offline-queue-1",
        "online-router-1",
    ]


@pytest.mark.parametrize("kind", ["nats", "curl", "openai", "batch"])
def test_each_command_that_up_prints_works_as_it_stands(up: Up, kind: str, tmp_path: Path) -> None:
    nats_url, http_url = up.announced["nats_url"], up.announced["http_url"]
    pasted = {
        "nats": nats_command(nats_url=nats_url, alias="tide-tiny"),
        "curl": curl_command(http_url=http_url, alias="tide-tiny"),
        "openai": openai_command(http_url=http_url, alias="tide-tiny"),
        "batch": batch_command(http_url=http_url, alias="tide-tiny"),
    }[kind]
    result = subprocess.run(
        ["bash", "-c", pasted],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=COMMAND_S,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()
    if kind == "nats":
        assert "request_finished.v1" in result.stdout
    if kind == "curl":
        assert result.stdout.rstrip().endswith("data: [DONE]")


@pytest.mark.parametrize("number", range(PROGRAMS_IN_README))
def test_each_program_in_the_readme_works_as_it_stands(up: Up, number: int) -> None:
    programs = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(programs) == PROGRAMS_IN_README
    program = programs[number]
    for written, here in (
        ("nats://127.0.0.1:4222", up.announced["nats_url"]),
        ("http://127.0.0.1:8000", up.announced["http_url"]),
    ):
        program = program.replace(written, here)
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=COMMAND_S
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()


def test_status_shows_everybody_as_json_and_as_tables(up: Up) -> None:
    shown = json.loads(up.command("status", "--json").stdout)
    assert [len(shown[kind]) for kind in ("workers", "routers", "gateways")] == [2, 1, 1]
    tables = up.command("status")
    assert tables.returncode == 0
    for worker in shown["workers"]:
        assert worker["worker_id"] in tables.stdout


def test_complete_prints_the_answer_and_equal_seeds_give_equal_answers(up: Up) -> None:
    seeded = ("complete", "The", "--max-tokens", "24", "--temperature", "0.9", "--seed", "5")
    first, second = (json.loads(up.command(*seeded, "--json").stdout) for _ in range(2))
    assert first["token_ids"] == second["token_ids"]
    assert first["completion_tokens"] == len(first["token_ids"]) <= 24
    plain = up.command(*seeded)
    assert plain.returncode == 0
    assert plain.stdout.removesuffix("\n") == first["text"]


def test_chat_answers_one_message_and_ends(up: Up) -> None:
    result = up.command("chat", "--message", "What does str.split do?", "--json")
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout)
    assert answer["text"].strip()
    assert answer["finish_reason"] in ("stop", "length")


def test_an_unknown_model_is_one_line_and_no_success(up: Up) -> None:
    result = up.command("complete", "x", "--model", "no-such-model")
    assert result.returncode == 1
    assert len(result.stderr.strip().splitlines()) == 1
    assert "model_not_found" in result.stderr


def test_a_second_fleet_in_the_same_folder_is_refused(up: Up) -> None:
    result = up.command("up")
    assert result.returncode == 64
    assert "already runs" in result.stderr


def test_a_killed_worker_is_replaced_under_a_new_id(up: Up) -> None:
    before = {w["worker_id"] for w in json.loads(up.command("status", "--json").stdout)["workers"]}
    victim = sorted(before)[0]
    killed = up.command("kill", victim, "--json")
    assert killed.returncode == 0, killed.stderr
    assert set(json.loads(killed.stdout)["process_ids"]) <= set(up.children)
    deadline = time.monotonic() + READY_S
    while True:
        shown = json.loads(up.command("status", "--json").stdout)["workers"]
        now = {worker["worker_id"] for worker in shown}
        if len(now) == 2 and victim not in now:
            return
        assert time.monotonic() < deadline, f"{now} after the death of {victim}"


def test_a_broker_that_dies_is_started_again_with_its_port_and_data(up: Up) -> None:
    folder = str(up.data_folder.resolve())
    owners = subprocess.run(
        ["pgrep", "-f", f"nats-server.*{folder}"], capture_output=True, text=True
    )
    broker = int(owners.stdout.split()[0])
    os.kill(broker, signal.SIGKILL)
    wait_until_gone([broker])
    answer = up.command("complete", "The", "--max-tokens", "8", "--json")
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout)["completion_tokens"] > 0


def test_kill_reaches_only_the_fleets_own_processes(up: Up) -> None:
    result = up.command("kill", "somebody-else")
    assert result.returncode == 64
    assert "nobody reports as somebody-else" in result.stderr


def test_sigterm_stops_everything_and_is_a_success(tmp_path: Path) -> None:
    running = start_up(tmp_path, "--workers", "1")
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(timeout=60) == 0
    wait_until_gone(running.children)
    assert not (tmp_path / "fleet.json").exists()


def test_a_fleet_does_not_outlive_its_launcher(tmp_path: Path) -> None:
    running = start_up(tmp_path, "--workers", "1")
    os.kill(running.process.pid, signal.SIGKILL)
    running.process.wait()
    wait_until_gone(running.children)


@pytest.mark.parametrize(
    ("damage", "said"),
    [("truncate", "safetensors"), ("family", "no_such_family"), ("config", "config.json")],
)
def test_a_model_that_cannot_be_served_ends_up_in_one_line(
    tmp_path: Path, damage: str, said: str
) -> None:
    folder = a_broken_model(tmp_path / "broken", damage)
    options = ("--workers", "1", "--http-port", "0", "--data-dir", str(tmp_path / "data"))
    result = tideserve("up", "--model", str(folder), *options, timeout_s=READY_S)
    assert result.returncode == 64, result.stderr
    error = [line for line in result.stderr.splitlines() if line.startswith("tideserve:")]
    assert len(error) == 1, result.stderr
    assert said in error[0]
    assert "Traceback" not in result.stderr


def a_broken_model(folder: Path, damage: str) -> Path:
    folder.mkdir()
    for path in bundled_model().folder.iterdir():
        if path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())
    config = folder / "config.json"
    match damage:
        case "truncate":
            weights = folder / "model.safetensors"
            weights.write_bytes(weights.read_bytes()[:1000])
        case "family":
            config.write_text(config.read_text().replace('"llama"', '"no_such_family"'))
        case "config":
            config.write_text("{")
    return folder
