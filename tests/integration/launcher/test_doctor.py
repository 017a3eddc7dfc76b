"""Ten faults are planted, one at a time, and each is found alone and with its remedy."""

import asyncio
import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from libs.kernel.units import MIB, NS_PER_S
from libs.runtime.clock import SystemClock
from libs.runtime.nats_server import NatsServer, ServerOptions
from libs.runtime.nats_server_search import find_nats_server
from services.launcher.doctor.broker import check_nats_server, check_running_broker
from services.launcher.doctor.command import examine
from services.launcher.doctor.findings import Finding, Outcome, Patient
from services.launcher.doctor.links import check_links
from services.launcher.doctor.machine import (
    check_data_folder,
    check_disk,
    check_model,
    check_ports,
    check_torch_and_gpu,
)

GPU_VENDOR, GPU_CLASS = "0x10de\n", "0x030200\n"


@pytest.fixture
def healthy(tmp_path: Path) -> Patient:
    """A patient without a fault, whatever machine this is: no GPU, and little to measure."""
    empty = tmp_path / "pci"
    empty.mkdir()
    return Patient(
        data_folder=tmp_path / "data",
        pci_folder=empty,
        driver_file=tmp_path / "no-driver",
        disk_bytes_min=MIB,
        rate_bytes=8 * MIB,
    )


@pytest.fixture
def nats_server(tmp_path: Path) -> Iterator[NatsServer]:
    with NatsServer(ServerOptions(data_folder=tmp_path / "nats")) as server:
        yield server


def found(check: object) -> list[Finding]:
    findings = check if isinstance(check, list) else [check]
    return [finding for finding in findings if finding.outcome is Outcome.FAULT]


def the_fault(findings: list[Finding]) -> Finding:
    [fault] = found(findings)
    assert fault.remedy
    return fault


def test_a_healthy_machine_has_no_fault_and_every_check_says_something(healthy: Patient) -> None:
    findings = examine(replace(healthy, ports=(a_free_port(),)))
    assert found(findings) == []
    assert {finding.check for finding in findings} == {
        "python",
        "torch",
        "gpu",
        "nats-server",
        "clock",
        "port",
        "disk",
        "data folder",
        "model",
        "tcp",
        "ucx",
    }
    assert all(finding.what for finding in findings)


@dataclass(frozen=True)
class Plant:
    """A fault: how it gets onto the machine, who finds it, and what the finding speaks of."""

    check: str
    spoil: Callable[[Patient, Path], Patient]
    speaks_of: str


def no_nats_server(patient: Patient, folder: Path) -> Patient:
    return replace(patient, environment={"PATH": str(folder), "XDG_CACHE_HOME": str(folder)})


def an_old_server(patient: Patient, folder: Path) -> Patient:
    program = folder / "nats-server"
    program.write_text("#!/bin/sh\necho 'nats-server: v2.8.4'\n")
    program.chmod(0o755)
    return replace(patient, environment={"TIDESERVE_NATS_SERVER": str(program)})


def no_disk(patient: Patient, folder: Path) -> Patient:
    return replace(patient, disk_bytes_min=2**60)


def a_missing_model(patient: Patient, folder: Path) -> Patient:
    return replace(patient, model=str(folder / "nowhere" / "model"))


def a_gpu_without_a_driver(patient: Patient, folder: Path) -> Patient:
    device = patient.pci_folder / "0000:3b:00.0"
    device.mkdir()
    (device / "vendor").write_text(GPU_VENDOR)
    (device / "class").write_text(GPU_CLASS)
    return replace(patient, environment={**patient.environment, "CUDA_VISIBLE_DEVICES": ""})


def ucx_without_transports(patient: Patient, folder: Path) -> Patient:
    return replace(patient, environment={**patient.environment, "UCX_TLS": "nothing_here"})


def an_unwritable_data_folder(patient: Patient, folder: Path) -> Patient:
    in_the_way = folder / "file"
    in_the_way.write_text("")
    return replace(patient, data_folder=in_the_way / "data")


PLANTS = {
    "no nats-server": Plant("nats-server", no_nats_server, "no nats-server found"),
    "an old nats-server": Plant("nats-server", an_old_server, "2.8.4 is too old"),
    "no disk": Plant("disk", no_disk, "MiB free"),
    "a missing model": Plant("model", a_missing_model, "nowhere"),
    "a GPU without a driver": Plant("gpu", a_gpu_without_a_driver, "no driver"),
    "UCX without transports": Plant("ucx", ucx_without_transports, "ucx cannot be used"),
    "an unwritable data folder": Plant("data folder", an_unwritable_data_folder, "written"),
}


@pytest.mark.parametrize("name", PLANTS)
def test_a_planted_fault_is_found_alone(healthy: Patient, tmp_path: Path, name: str) -> None:
    plant = PLANTS[name]
    if plant.check == "ucx" and find_spec("ucxx") is None:
        pytest.skip("ucxx is not installed")
    folder = tmp_path / "plant"
    folder.mkdir()
    patient = plant.spoil(healthy, folder)
    findings = [
        check_nats_server(patient),
        *check_ports(patient),
        check_disk(patient),
        check_data_folder(patient),
        check_model(patient),
    ]
    if plant.check in ("gpu", "ucx"):  # these take seconds; no other plant is near them
        findings += [*check_torch_and_gpu(patient), *check_links(patient)]
    fault = the_fault(findings)
    assert fault.check == plant.check
    assert plant.speaks_of in fault.what


def test_a_taken_port_is_found(healthy: Patient) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        fault = the_fault(check_ports(replace(healthy, ports=(port, a_free_port()))))
    assert str(port) in fault.what


def test_a_broker_without_jetstream_is_found(healthy: Patient) -> None:
    port = a_free_port()
    program = find_nats_server()
    if program.source == "docker":
        pytest.skip("needs a nats-server program, to start without JetStream")
    command = [program.binary, "-a", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as server:
        try:
            await_port(port)
            fault = the_fault(broker_findings(healthy, f"nats://127.0.0.1:{port}"))
        finally:
            server.terminate()
    assert "without JetStream" in fault.what
    assert "-js" in fault.remedy


def test_a_clock_that_runs_ahead_or_behind_is_found_and_a_true_one_is_not(
    healthy: Patient, nats_server: NatsServer
) -> None:
    assert found(broker_findings(healthy, nats_server.url)) == []
    for ahead_s, shown in ((30, "+30."), (-30, "-30.")):
        patient = replace(healthy, clock=WrongClock(ahead_s * NS_PER_S))
        fault = the_fault(broker_findings(patient, nats_server.url))
        assert fault.check == "clock"
        assert fault.what.startswith(shown) or fault.what.startswith(shown[0] + "29.")


def test_a_broker_that_is_not_there_is_found(healthy: Patient) -> None:
    fault = the_fault(broker_findings(healthy, f"nats://127.0.0.1:{a_free_port()}"))
    assert "no nats-server answers" in fault.what


def test_the_command_prints_json_and_exits_1_for_a_fault(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "services.launcher", "doctor", "--json"]
        result = subprocess.run(
            [*command, "--data-dir", str(tmp_path), "--http-port", str(port)],
            capture_output=True,
            text=True,
        )
    assert result.returncode == 1
    told = json.loads(result.stdout)
    assert not told["is_fit"]
    assert [f["check"] for f in told["findings"] if f["outcome"] == "fault"] == ["port"]


class WrongClock(SystemClock):
    """A wall clock that somebody set."""

    def __init__(self, ahead_ns: int) -> None:
        self._ahead_ns = ahead_ns

    def now_unix_ns(self) -> int:
        return super().now_unix_ns() + self._ahead_ns


def broker_findings(patient: Patient, url: str) -> list[Finding]:
    return asyncio.run(check_running_broker(replace(patient, nats_url=url)))


def a_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def await_port(port: int) -> None:
    """Return once something listens; a server is up within 50 ms."""
    for _ in range(2_000):
        with socket.socket() as probe:
            probe.settimeout(0.01)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
    raise AssertionError("nobody listens")
