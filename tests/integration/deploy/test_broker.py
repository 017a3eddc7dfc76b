"""The chart's broker: its configuration, its leaving, and the lag by which KEDA scales queues."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from libs.client.records import BUCKET_BYTES_MAX as RECORD_BYTES_MAX
from libs.contracts import subjects
from libs.kernel.units import NS_PER_S
from libs.runtime.clock import SystemClock
from libs.runtime.nats_bus import NatsBus
from libs.runtime.nats_server_search import find_nats_server
from services.migrator.ports import BUCKET_BYTES_MAX
from services.offline_queue.store import (
    JOB_OPTIONS,
    RESULT_OPTIONS,
    open_offline_store,
)
from services.online_router.ports import CLAIM_BYTES_MAX, JOURNAL_OPTIONS
from tests.integration.deploy.conftest import ROOT, Rendered

SYNC_ALWAYS_VERSION = (2, 10, 0)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port: int = held.getsockname()[1]
        return port


def configuration_of(rendered: Rendered) -> str:
    text: str = rendered.named("ConfigMap", "tideserve-nats")["data"]["nats.conf"]
    return text


@pytest.mark.parametrize("case", ["defaults", "one-broker"])
def test_the_broker_takes_its_configuration(
    case: str, answers: dict[str, Any], tmp_path: Path
) -> None:
    program = find_nats_server()
    if program.version < SYNC_ALWAYS_VERSION:
        pytest.skip(f"nats-server {program.version} has no sync_interval: always")
    file = tmp_path / "nats.conf"
    file.write_text(configuration_of(Rendered(case=case, manifests=answers[case])))
    result = subprocess.run(
        [program.binary, "-t", "--config", file],
        env={**os.environ, "POD_NAME": "tideserve-nats-0"},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert result.returncode == 0, result.stderr


def test_each_broker_finds_the_others_under_the_names_of_their_pods(defaults: Rendered) -> None:
    brokers = defaults.named("StatefulSet", "tideserve-nats")["spec"]
    routes = re.findall(r"nats://([\w-]+)\.([\w-]+):6222", configuration_of(defaults))
    pods = [f"tideserve-nats-{number}" for number in range(brokers["replicas"])]
    assert routes == [(pod, brokers["serviceName"]) for pod in pods]
    peers = defaults.named("Service", brokers["serviceName"])["spec"]
    assert peers["clusterIP"] == "None"
    assert peers["publishNotReadyAddresses"] is True


def test_its_grace_period_holds_what_leaving_takes(defaults: Rendered) -> None:
    leaving = re.findall(r'lame_duck_\w+: "(\d+)s"', configuration_of(defaults))
    assert [int(part) for part in leaving] == [10, 30]
    pod = defaults.named("StatefulSet", "tideserve-nats")["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] >= sum(map(int, leaving)) + 10


@pytest.mark.parametrize("source", ["chart", "compose"])
def test_it_has_room_for_what_all_streams_reserve(source: str, defaults: Rendered) -> None:
    compose = (ROOT / "deploy" / "nats.conf").read_text(encoding="utf-8")
    text = configuration_of(defaults) if source == "chart" else compose
    (gigabytes,) = re.findall(r"max_file_store: (\d+)GB", text)
    streams = sum(options.bytes_max for options in (JOURNAL_OPTIONS, JOB_OPTIONS, RESULT_OPTIONS))
    buckets = CLAIM_BYTES_MAX + 2 * BUCKET_BYTES_MAX + 2 * RECORD_BYTES_MAX
    assert streams + buckets <= int(gigabytes) * 1000**3


@dataclass(frozen=True)
class Broker:
    """A nats-server with its monitoring port and its file with its process id."""

    process: subprocess.Popen[bytes]
    port: int
    monitor_port: int
    pid_file: Path

    def asked(self, path: str) -> dict[str, Any]:
        url = f"http://127.0.0.1:{self.monitor_port}{path}"
        with urllib.request.urlopen(url, timeout=5) as response:
            answer: dict[str, Any] = json.load(response)
            return answer


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    binary = find_nats_server().binary
    port, monitor_port, pid_file = free_port(), free_port(), tmp_path / "nats.pid"
    network = ("--addr", "127.0.0.1", "--port", str(port), "--http_port", str(monitor_port))
    files = ("--store_dir", tmp_path, "--pid", pid_file, "--log", tmp_path / "log")
    process = subprocess.Popen([binary, "--jetstream", *network, *files])
    try:
        yield Broker(process, port, monitor_port, pid_file)
    finally:
        process.kill()
        process.wait()


async def connected(broker: Broker) -> NatsBus:
    return await NatsBus.connect(f"nats://127.0.0.1:{broker.port}", name="test-broker")


def test_its_last_command_makes_it_hand_over_and_sigterm_does_not_cut_that_short(
    broker: Broker, defaults: Rendered
) -> None:
    pod = defaults.named("StatefulSet", "tideserve-nats")["spec"]["template"]["spec"]
    hook = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    command = [part.replace("/run/nats/nats.pid", str(broker.pid_file)) for part in hook]
    assert str(broker.pid_file) in command[-1]

    async def leave() -> None:
        bus = await connected(broker)
        subprocess.run([find_nats_server().binary, *command[1:]], check=True, timeout=10)
        # The kubelet sends it as soon as the hook is done.
        broker.process.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            broker.process.wait(timeout=1)
        await bus.flush()
        await bus.close()

    asyncio.run(leave())


def test_what_keda_calls_lag_is_what_waits_and_what_is_under_way(
    broker: Broker, everything: Rendered
) -> None:
    scaled = everything.named("ScaledObject", "tideserve-offline-queue")["spec"]
    metadata = next(t for t in scaled["triggers"] if t["type"] == "nats-jetstream")["metadata"]

    async def work() -> None:
        bus = await connected(broker)
        store = await open_offline_store(bus, clock=SystemClock(), lease_ns=60 * NS_PER_S)
        jobs = await store.jobs()
        for number in range(17):
            await bus.append(subjects.offline("tide-tiny"), b"job", message_id=f"job-{number}")
        leases = await jobs.fetch(5, timeout_ns=NS_PER_S)
        await leases[0].ack()
        await until_lag(16)
        for lease in leases[1:]:
            await lease.ack()
        await until_lag(12)
        await bus.close()

    async def until_lag(jobs: int) -> None:
        async with asyncio.timeout(5):
            while lag(broker, metadata) != jobs:
                await asyncio.sleep(0.02)

    asyncio.run(work())


def lag(broker: Broker, metadata: dict[str, str]) -> int:
    """What KEDA's scaler computes, from the same page of the broker.

    Source: keda.sh, "NATS JetStream" scaler; its code adds both numbers of the consumer.
    """
    account = metadata["account"].replace("$", "%24")
    page = broker.asked(f"/jsz?acc={account}&config=true&consumers=true")
    (details,) = page["account_details"]
    (stream,) = [one for one in details["stream_detail"] if one["name"] == metadata["stream"]]
    (consumer,) = [one for one in stream["consumer_detail"] if one["name"] == metadata["consumer"]]
    waiting, under_way = int(consumer["num_pending"]), int(consumer["num_ack_pending"])
    return waiting + under_way
