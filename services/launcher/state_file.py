"""What a running fleet leaves on disk, so that the other commands find it."""

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from libs.kernel.errors import ConfigError
from libs.runtime.whole_file import write_whole_file

STATE_FILE: Final = "fleet.json"
NATS_URL_VARIABLE: Final = "TIDESERVE_NATS_URL"
HTTP_URL_VARIABLE: Final = "TIDESERVE_HTTP_URL"
DEFAULT_DATA_FOLDER: Final = Path(".tideserve")


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetState:
    """Where the fleet is reached and which processes belong to it."""

    nats_url: str
    http_url: str | None
    alias: str
    launcher_process_id: int
    process_ids: dict[str, int] = field(default_factory=dict)
    """Name of each child, such as gpu-worker-1, to its process."""
    node_ids: list[str] = field(default_factory=list)
    """Nodes that have not been killed; the names of their processes begin with theirs."""

    def processes_of(self, node_id: str) -> list[str]:
        """Return the names of the node's processes."""
        return sorted(name for name in self.process_ids if name.startswith(f"{node_id}-"))

    def write(self, data_folder: Path) -> None:
        """Replace the state file in one step, so that no reader sees half of it."""
        data_folder.mkdir(parents=True, exist_ok=True)
        write_whole_file(data_folder / STATE_FILE, json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, data_folder: Path) -> Self | None:
        """Return the state of the fleet that runs from this folder, or None if none does."""
        try:
            raw: Any = json.loads((data_folder / STATE_FILE).read_text(encoding="utf-8"))
            state = cls(**raw)
        except (OSError, ValueError, TypeError):
            return None
        return state if is_alive(state.launcher_process_id) else None

    @staticmethod
    def remove(data_folder: Path) -> None:
        """Forget the fleet; harmless if there is no file."""
        (data_folder / STATE_FILE).unlink(missing_ok=True)


def is_alive(process_id: int) -> bool:
    """Tell whether this process exists, whoever owns it."""
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def find_nats_url(given: str | None, data_folder: Path) -> str:
    """Return the broker to talk to: --nats, then $TIDESERVE_NATS_URL, then the running fleet's.

    Raises: ConfigError that says how to start a fleet.
    """
    named = given or os.environ.get(NATS_URL_VARIABLE)
    if named:
        return named
    state = FleetState.read(data_folder)
    if state is None:
        raise ConfigError(
            f"no fleet runs from {data_folder}: start one with `tideserve up`, or name a broker"
            f" with --nats URL or ${NATS_URL_VARIABLE}"
        )
    return state.nats_url


def find_http_url(given: str | None, data_folder: Path) -> str:
    """Return the gateway to talk to: --url, then $TIDESERVE_HTTP_URL, then the running fleet's.

    Raises: ConfigError that says how to start a fleet.
    """
    named = given or os.environ.get(HTTP_URL_VARIABLE)
    if named:
        return named
    state = FleetState.read(data_folder)
    if state is None or state.http_url is None:
        raise ConfigError(
            f"no fleet with a gateway runs from {data_folder}: start one with `tideserve up`, or"
            f" name a gateway with --url URL or ${HTTP_URL_VARIABLE}"
        )
    return state.http_url
