"""Checks of the transports: each opens, and how fast it is over loopback.

Measured in a process of its own each: UCX may end its process where it finds no transport.
"""

import asyncio
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Final, Literal

import services
from libs.kernel.units import KIB, MIB, NS_PER_S
from libs.runtime.clock import SystemClock
from libs.transfer.opening import open_transport
from libs.transfer.transport import Connection, Message
from services.launcher.doctor.findings import Finding, Patient, fault, note, ok

PROBE_TIMEOUT_S: Final = 60
TIMEOUT_NS: Final = 30 * NS_PER_S
HOST: Final = "127.0.0.1"
BODY_BYTES: Final = 8 * MIB

Kind = Literal["tcp", "ucx"]


def check_links(patient: Patient) -> list[Finding]:
    """TCP, which must work, and UCX, which is wanted where there is a GPU or RDMA."""
    return [_link_finding(patient, "tcp"), _ucx_finding(patient)]


def _ucx_finding(patient: Patient) -> Finding:
    if find_spec("ucxx") is None:
        remedy = "`pip install 'tideserve[ucx]'` where there is a GPU or RDMA"
        return note("ucx", "not installed; KV and weights go over TCP", remedy=remedy)
    return _link_finding(patient, "ucx")


def _link_finding(patient: Patient, kind: Kind) -> Finding:
    rate, why = _measured(patient, kind)
    if rate is None:
        remedy = (
            "unset UCX_TLS and UCX_NET_DEVICES, or name transports that this machine has; "
            "`--transport tcp` does without UCX"
            if kind == "ucx"
            else "loopback must be up: `ip link set lo up`"
        )
        return fault(kind, f"{kind} cannot be used: {why}", remedy=remedy)
    return ok(kind, f"{rate / MIB:,.0f} MiB/s over loopback{_transports(patient, kind)}")


def _transports(patient: Patient, kind: Kind) -> str:
    if kind == "tcp":
        return ""
    return f", UCX_TLS={patient.environment.get('UCX_TLS', 'all')}"


def _measured(patient: Patient, kind: Kind) -> tuple[float | None, str]:
    assert services.__file__ is not None
    command = [sys.executable, "-m", "services.launcher.doctor.links", kind]
    try:
        result = subprocess.run(
            [*command, str(patient.rate_bytes)],
            capture_output=True,
            text=True,
            timeout=PROBE_TIMEOUT_S,
            env=dict(patient.environment),
            cwd=Path(services.__file__).resolve().parents[1],
        )
        # UCX warns on stdout, before the result.
        rate = float(json.loads(result.stdout.strip().rpartition("\n")[2])["bytes_per_s"])
    except subprocess.TimeoutExpired:
        return None, f"no {patient.rate_bytes / MIB:g} MiB within {PROBE_TIMEOUT_S} s"
    except (ValueError, KeyError, TypeError):
        return None, _last_words(result.stdout + result.stderr)
    return rate, ""


def _last_words(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return lines[-1][-200:] if lines else "it ended without a word"


async def measure(kind: Kind, size_bytes: int) -> float:
    """Return the bytes per second of one connection, both ends in this process, answers included.

    Raises: Unavailable, ConfigError.
    """
    transport = open_transport(kind, host=HOST)
    body = memoryview(bytearray(BODY_BYTES))
    clock = SystemClock()
    try:
        listener = await transport.listen(_answer)
        connection = await transport.connect(listener.address, timeout_ns=TIMEOUT_NS)
        await _ask(connection, body)  # what is set up on first use is no part of the rate
        times = max(1, size_bytes // BODY_BYTES)
        begun_ns = clock.now_ns()
        for _ in range(times):
            await _ask(connection, body)
        return times * BODY_BYTES * NS_PER_S / (clock.now_ns() - begun_ns)
    finally:
        await transport.close()


async def _ask(connection: Connection, body: memoryview) -> None:
    await connection.send(b"take", [body], timeout_ns=TIMEOUT_NS)
    await connection.receive(timeout_ns=TIMEOUT_NS)


async def _answer(connection: Connection) -> None:
    while True:
        message: Message = await connection.receive()
        await connection.send(b"taken", [bytes(min(KIB, len(message.body)))], timeout_ns=TIMEOUT_NS)


def main() -> None:
    """Measure what the arguments say and print it as JSON."""
    kind: Kind = "ucx" if sys.argv[1] == "ucx" else "tcp"
    rate = asyncio.run(measure(kind, int(sys.argv[2])))
    sys.stdout.write(json.dumps({"bytes_per_s": rate}) + "\n")


if __name__ == "__main__":
    main()
