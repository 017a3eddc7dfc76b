"""A nats-server of our own: the embedded default, and the victim of failure tests.

    stopped --start--> running --pause--> paused --resume--> running
       ^                 | stop, kill        | kill
       +-----------------+-------------------+

Port and data folder stay the same over restarts, so that clients find it again and streams are
still there. The server dies with this process, by whatever death.
"""

import json
import os
import secrets
import signal
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeAlias

import structlog

from libs.kernel.errors import ConfigError
from libs.kernel.units import KIB, MIB, NS_PER_S, seconds
from libs.runtime.nats_server_search import (
    DOCKER_IMAGE,
    ServerProgram,
    find_nats_server,
    parse_version,
    require_version,
)
from libs.runtime.process import die_with_parent

HOST: Final = "127.0.0.1"
START_TIMEOUT_NS: Final = 30 * NS_PER_S
"""A server is up in 50 ms; recovering large streams from disk takes longer."""
STOP_TIMEOUT_S: Final = 10
POLL_S: Final = 0.005
PORT_ATTEMPTS_MAX: Final = 5
GREETING_BYTES_MAX: Final = 64 * KIB
SYNC_ALWAYS_VERSION: Final = (2, 10, 0)
LOG_TAIL_LINES: Final = 5
STORE_BYTES_MAX: Final = 64 * 1024 * MIB
"""Streams reserve their bytes_max from this; it is no promise of free disk."""
MEMORY_BYTES_MAX: Final = 1024 * MIB

SyncName: TypeAlias = Literal["always", "interval"]

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """How the embedded server runs."""

    data_folder: Path
    """Streams, configuration and log; created if missing."""
    port: int | None = None
    """None takes a free one at the first start."""
    payload_bytes_max: int = MIB
    """nats-server's own default: what is larger goes by reference, never through the broker."""
    ping_interval_ns: int = 5 * NS_PER_S
    """With two missed pings a cut-off client is dropped after 10-15 s instead of minutes."""
    sync: SyncName = "always"
    """Whether an append returns after fsync; only from nats-server 2.10 on, ignored before."""


class NatsServer:
    """One nats-server process on loopback with JetStream. Synchronous; starting takes 50 ms."""

    def __init__(self, options: ServerOptions, *, program: ServerProgram | None = None) -> None:
        self._options = options
        self._program = find_nats_server() if program is None else program
        self._port = options.port
        self._process: subprocess.Popen[bytes] | None = None
        self._name = f"tideserve-{secrets.token_hex(4)}"
        self._version = (0, 0, 0)

    @property
    def url(self) -> str:
        """What clients connect to, from the first start on."""
        assert self._port is not None, "the server was never started"
        return f"nats://{HOST}:{self._port}"

    @property
    def version(self) -> tuple[int, int, int]:
        """The version the running server reported."""
        return self._version

    @property
    def process_id(self) -> int | None:
        """The process, while there is one."""
        return None if self._process is None else self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether the process exists; a paused one does."""
        return self._process is not None and self._process.poll() is None

    @property
    def log_file(self) -> Path:
        """Where the server logs."""
        return self._options.data_folder / "nats-server.log"

    def start(self) -> None:
        """Start and return once clients can connect and JetStream is on.

        Raises: ConfigError with the end of the server's log.
        """
        assert not self.is_running, "the server is running already"
        attempts = 1 if self._port is not None else PORT_ATTEMPTS_MAX
        for attempt in range(1, attempts + 1):
            port = _free_port() if self._port is None else self._port
            if self._start_on(port):
                self._port = port
                _log.info(
                    "nats_server_started",
                    url=self.url,
                    source=self._program.source,
                    version=".".join(map(str, self._version)),
                )
                return
            if attempt == attempts or "address already in use" not in self._log_tail():
                raise ConfigError(f"nats-server does not start: {self._log_tail()}")

    def stop(self) -> None:
        """Stop gracefully, by force after 10 s; harmless if it is not running."""
        process = self._process
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)
            if process.stdin is not None:
                process.stdin.close()  # The container's word to end; see _command.
            else:
                process.terminate()
            try:
                process.wait(timeout=STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
        self._reap()

    def kill(self) -> None:
        """Kill it without notice (SIGKILL); in docker this, like pause, meets the client only."""
        assert self._process is not None, "the server is not running"
        self._process.kill()
        self._reap()

    def pause(self) -> None:
        """Freeze it (SIGSTOP): connections stay open and nothing answers, from the return on."""
        assert self._process is not None, "the server is not running"
        self._process.send_signal(signal.SIGSTOP)
        # The signal alone lets threads run on for a while; the kernel tells when all have stopped.
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        """Let a frozen server go on."""
        assert self._process is not None, "the server is not running"
        self._process.send_signal(signal.SIGCONT)

    def __enter__(self) -> "NatsServer":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _start_on(self, port: int) -> bool:
        folder = self._options.data_folder
        folder.mkdir(parents=True, exist_ok=True)
        configuration = folder / "nats-server.conf"
        configuration.write_text(self._configuration(port))
        with self.log_file.open("wb") as log:
            self._process = subprocess.Popen(
                self._command(configuration),
                stdin=subprocess.PIPE if self._program.source == "docker" else subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        greeting = self._await_greeting(port)
        if greeting is None:
            self._reap()
            return False
        self._check(greeting)
        return True

    def _command(self, configuration: Path) -> list[str]:
        binary = str(self._program.binary)
        if self._program.source != "docker":
            return [binary, "-c", str(configuration)]
        folder = str(self._options.data_folder.resolve())
        # The container ends with its stdin, which the kernel closes when this process dies.
        script = f"nats-server -c '{configuration.resolve()}' & cat > /dev/null; kill $!; wait"
        volume = f"{folder}:{folder}"
        owner = f"{os.getuid()}:{os.getgid()}"
        options = ["run", "--rm", "-i", "--network", "host", "--user", owner, "-v", volume]
        options += ["--entrypoint", "sh"]
        return [binary, *options, DOCKER_IMAGE, "-c", script]

    def _configuration(self, port: int) -> str:
        options = self._options
        store = {
            "store_dir": str((options.data_folder / "jetstream").resolve()),
            "max_memory_store": MEMORY_BYTES_MAX,
            "max_file_store": STORE_BYTES_MAX,
        }
        if options.sync == "always" and self._program.version >= SYNC_ALWAYS_VERSION:
            store["sync_interval"] = "always"
        whole = {
            "server_name": self._name,
            "host": HOST,
            "port": port,
            "max_payload": options.payload_bytes_max,
            "ping_interval": f"{seconds(options.ping_interval_ns):g}s",
            "ping_max": 2,
            "jetstream": store,
        }
        return json.dumps(whole, indent=2) + "\n"

    def _await_greeting(self, port: int) -> dict[str, object] | None:
        """Poll until our own server greets; None if it exits first."""
        assert self._process is not None
        deadline_ns = time.monotonic_ns() + START_TIMEOUT_NS
        while self._process.poll() is None:
            greeting = greeting_of(HOST, port)
            if greeting is not None and greeting.get("server_name") == self._name:
                return greeting
            if time.monotonic_ns() > deadline_ns:
                self._process.kill()
                raise ConfigError(f"nats-server does not get ready: {self._log_tail()}")
            time.sleep(POLL_S)
        return None

    def _check(self, greeting: dict[str, object]) -> None:
        self._version = parse_version(str(greeting.get("version")), where=self._label())
        try:
            require_version(self._version, where=self._label())
            if greeting.get("jetstream") is not True:
                raise ConfigError(f"nats-server runs without JetStream: {self._log_tail()}")
        except ConfigError:
            self.kill()
            raise

    def _label(self) -> str:
        """Return how to name this server in a message, started or not."""
        return "the embedded nats-server" if self._port is None else self.url

    def _reap(self) -> None:
        assert self._process is not None
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait()
        self._process = None

    def _log_tail(self) -> str:
        lines = self.log_file.read_text(errors="replace").strip().splitlines()
        return " | ".join(lines[-LOG_TAIL_LINES:]) or "it says nothing"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def greeting_of(host: str, port: int) -> dict[str, object] | None:
    """Read the INFO line with which a nats-server greets; None if nobody greets, or another."""
    try:
        with socket.create_connection((host, port), timeout=1.0) as connection:
            line = connection.makefile("rb").readline(GREETING_BYTES_MAX)
        greeting = json.loads(line.removeprefix(b"INFO ")) if line.startswith(b"INFO ") else None
    except (OSError, ValueError):
        return None
    return greeting if isinstance(greeting, dict) else None
