"""Checks of the broker: a program to start, or a server that runs, and the clock it keeps."""

import json
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from libs.kernel.errors import ConfigError, Unavailable
from libs.kernel.units import NS_PER_S, seconds
from libs.runtime.nats_bus import NatsBus
from libs.runtime.nats_server import NatsServer, ServerOptions, greeting_of
from libs.runtime.nats_server_search import (
    HOW_TO_GET_ONE,
    VERSION_MIN,
    find_nats_server,
    parse_version,
)
from services.launcher.connection import connected
from services.launcher.doctor.findings import Finding, Patient, fault, note, ok

NATS_PORT: Final = 4222
SKEW_NS_MAX: Final = NS_PER_S
"""Clouds tell deadlines as instants of the wall clock; the watcher's margin must hold this too."""
CLOCK_STREAM: Final = "TIDE_DOCTOR"
GET_JETSTREAM: Final = "start nats-server with -js, or `jetstream {}` in its configuration"


def check_nats_server(patient: Patient) -> Finding:
    """The program that `tideserve up` would start: there, new enough, JetStream comes up."""
    try:
        program = find_nats_server(environment=patient.environment, may_fetch=False)
        with tempfile.TemporaryDirectory() as folder:
            options = ServerOptions(data_folder=Path(folder))
            with NatsServer(options, program=program) as server:
                version = ".".join(map(str, server.version))
    except ConfigError as error:
        what = str(error).removesuffix(HOW_TO_GET_ONE).rstrip("; ") or "no nats-server found"
        return fault(
            "nats-server", what, remedy=HOW_TO_GET_ONE.removeprefix("no nats-server found: ")
        )
    return ok("nats-server", f"{version} at {program.binary}, JetStream works")


async def check_running_broker(patient: Patient) -> list[Finding]:
    """The broker at the URL given: answers, new enough, JetStream on, a clock like ours."""
    url = patient.nats_url
    assert url is not None
    where = urlsplit(url.split(",")[0])
    greeting = greeting_of(where.hostname or "", where.port or NATS_PORT)
    if greeting is None:
        remedy = "start it, or correct --nats; a firewall between may drop the port"
        return [fault("nats-server", f"no nats-server answers at {url}", remedy=remedy)]
    version = parse_version(str(greeting.get("version")), where=url)
    shown = ".".join(map(str, version))
    if version < VERSION_MIN:
        needed = ".".join(map(str, VERSION_MIN))
        remedy = f"update it to {needed} or newer; older ones ignore settings in silence"
        return [fault("nats-server", f"{url} is nats-server {shown}", remedy=remedy)]
    if greeting.get("jetstream") is not True:
        what = f"{url} runs without JetStream, which keeps every journal"
        return [fault("nats-server", what, remedy=GET_JETSTREAM)]
    found = ok("nats-server", f"{shown} at {url}, JetStream is on")
    return [found, await _clock_finding(patient, url)]


async def _clock_finding(patient: Patient, url: str) -> Finding:
    try:
        async with connected(url, name="tideserve-doctor") as bus:
            skew_ns, error_ns = await _skew_ns(patient, bus)
    except (Unavailable, ConfigError, ValueError) as error:
        return note("clock", f"the broker does not tell its time: {error}")
    what = f"{seconds(skew_ns):+.3f} s against the broker, give or take {seconds(error_ns):.3f} s"
    if abs(skew_ns) - error_ns > SKEW_NS_MAX:
        remedy = "have both follow a time server (`timedatectl set-ntp true`, or chrony)"
        return fault("clock", what, remedy=remedy)
    return ok("clock", what)


async def _skew_ns(patient: Patient, bus: NatsBus) -> tuple[int, int]:
    """Return how far our clock is ahead of the broker's, and how exact that is.

    A stream's record of its creation is the one time that every server from 2.9 on tells a client.
    """
    wanted = {"name": CLOCK_STREAM, "subjects": [], "storage": "memory", "max_bytes": 1024}
    await bus.request(f"$JS.API.STREAM.DELETE.{CLOCK_STREAM}", b"")
    before_ns = patient.clock.now_unix_ns()
    reply = await bus.request(f"$JS.API.STREAM.CREATE.{CLOCK_STREAM}", json.dumps(wanted).encode())
    after_ns = patient.clock.now_unix_ns()
    await bus.request(f"$JS.API.STREAM.DELETE.{CLOCK_STREAM}", b"")
    answer = json.loads(reply.payload)
    if "created" not in answer:
        raise ValueError(answer.get("error", {}).get("description", "an unknown answer"))
    created = datetime.fromisoformat(answer["created"][:26].rstrip("Z") + "+00:00")
    created_ns = round(created.timestamp() * NS_PER_S)
    return (before_ns + after_ns) // 2 - created_ns, (after_ns - before_ns) // 2


NO_BROKER = note(
    "clock", "no fleet runs here; with --nats URL the clock is compared with the broker's"
)
