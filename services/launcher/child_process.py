"""One service as a child process: started with its settings, watched, stopped within a bound."""

import asyncio
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import services
from libs.kernel.errors import EXIT_CONFIG_ERROR, ConfigError
from libs.runtime.process import die_with_parent

STOP_TIMEOUT_S: Final = 10.0
"""How long a service may take to wind up after SIGTERM before it is killed."""
LOG_TAIL_BYTES: Final = 4096
LOG_TAIL_LINES: Final = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildOptions:
    """What to start."""

    name: str
    """Unique in the fleet, such as gpu-worker-1."""
    service: str
    """The folder under services/, such as gpu_worker."""
    settings: Mapping[str, str]
    """Fields of the service's config; become SERVICE__FIELD in its environment."""
    log_folder: Path
    is_reporting: bool = True
    """Whether it is heard on the bus once it is ready."""


class ChildProcess:
    """A running service. It dies with this process, by whatever death."""

    def __init__(self, options: ChildOptions, process: asyncio.subprocess.Process) -> None:
        self.options = options
        self._process = process

    @classmethod
    async def start(cls, options: ChildOptions) -> "ChildProcess":
        """Start the process; it is ready when its first report is heard, not before."""
        options.log_folder.mkdir(parents=True, exist_ok=True)
        with log_file(options).open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                f"services.{options.service}",
                env=_environment(options),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C in a terminal reaches the launcher alone, which then stops its children.
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        return cls(options, process)

    @property
    def name(self) -> str:
        """The child's name in the fleet."""
        return self.options.name

    @property
    def process_id(self) -> int:
        """The process, also after its death."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative for a signal."""
        return self._process.returncode

    async def wait(self) -> int:
        """Return the exit code once the process has ended."""
        return await self._process.wait()

    async def stop(self) -> None:
        """Ask the process to wind up; kill it if it has not after 10 s."""
        if self.exit_code is not None:
            return
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(self._process.wait(), STOP_TIMEOUT_S)
        except TimeoutError:
            self.signal(signal.SIGKILL)
            await self._process.wait()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal; harmless if the process is gone."""
        if self.exit_code is None:
            self._process.send_signal(number)

    def log_tail(self) -> str:
        """Return the end of what the process wrote."""
        path = log_file(self.options)
        with path.open("rb") as log:
            log.seek(max(0, path.stat().st_size - LOG_TAIL_BYTES))
            lines = log.read().decode(errors="replace").strip().splitlines()
        return "\n".join(lines[-LOG_TAIL_LINES:])

    def failure(self) -> ConfigError:
        """Describe an end that was not asked for; a configuration error in the child's words."""
        tail = self.log_tail().splitlines() or ["it says nothing"]
        if self.exit_code == EXIT_CONFIG_ERROR:
            return ConfigError(tail[-1])
        how = describe_exit(self.exit_code or 0)
        return ConfigError(f"{self.name} {how}: {tail[-1]} (log: {log_file(self.options)})")


def log_file(options: ChildOptions) -> Path:
    """Where this child's output goes."""
    return options.log_folder / f"{options.name}.log"


def describe_exit(exit_code: int) -> str:
    """Put an exit code into words."""
    if exit_code < 0:
        return f"was killed by {signal.Signals(-exit_code).name}"
    return f"ended with exit code {exit_code}"


def _environment(options: ChildOptions) -> dict[str, str]:
    """This process's environment, the child's settings, and a path on which to find the code."""
    assert services.__file__ is not None
    root = str(Path(services.__file__).resolve().parents[1])
    inherited = os.environ.get("PYTHONPATH")
    prefix = options.service.upper()
    settings = {f"{prefix}__{key.upper()}": value for key, value in options.settings.items()}
    return {
        **os.environ,
        "PYTHONPATH": root if not inherited else f"{root}{os.pathsep}{inherited}",
        # The model is a folder by now; transformers would ask the hub about it all the same.
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        **settings,
    }
