"""A process from its first line to its exit code."""

import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PROLOGUE = """
import asyncio, sys
from libs.kernel.errors import ConfigError, InvariantViolation
from libs.runtime.process import run_service
"""


def start(body: str) -> subprocess.Popen[str]:
    script = PROLOGUE + textwrap.dedent(body) + "\nsys.exit(run_service(main, name='thing'))\n"
    return subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("stop_signal", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_service_wind_up(stop_signal):
    process = start(
        """
        async def main(stopping):
            print("ready", flush=True)
            await stopping.wait()
            print("wound up", flush=True)
        """
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(stop_signal)
    out, _ = process.communicate(timeout=20)
    assert "wound up" in out
    assert process.returncode == 0


def test_a_second_signal_ends_it_at_once():
    process = start(
        """
        async def main(stopping):
            print("ready", flush=True)
            await stopping.wait()
            print("stopping", flush=True)
            await asyncio.sleep(600)
        """
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    while process.stdout.readline() != "stopping\n":
        pass
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 128 + signal.SIGTERM


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        ("ConfigError('router.port: must be set')", 64, "thing: router.port: must be set\n"),
        ("InvariantViolation('a token was lost')", 70, "a token was lost"),
        ("RuntimeError('what')", 1, "RuntimeError: what"),
    ],
)
@pytest.mark.parametrize("in_a_group", [False, True])
def test_the_exit_code_tells_whose_fault_it_was(error, code, said, in_a_group):
    raised = f"ExceptionGroup('g', [{error}])" if in_a_group else error
    process = start(
        f"""
        async def main(stopping):
            raise {raised}
        """
    )
    out, err = process.communicate(timeout=20)
    assert process.returncode == code
    assert said in err + out
    if code == 64:
        assert "Traceback" not in err
