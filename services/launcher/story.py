"""`tideserve story ID`: everything that happened to a request, node, worker, replica or plan.

Read from the services' own log lines, which carry every decision with its cause. A line belongs to
the story if the id stands in one of its fields, the cause among them; what the processes of one
machine write is put in order by time.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from libs.kernel.errors import ConfigError
from services.launcher.completion import entity_ids
from services.launcher.console import show, show_json
from services.launcher.options import AsJson, DataFolder
from services.launcher.state_file import DEFAULT_DATA_FOLDER

FRAME_FIELDS: Final = frozenset({"timestamp", "event", "level", "service", "logger"})
LINE_BYTES_MAX: Final = 64 * 1024
"""A longer line is no decision of ours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLine:
    """One decision as a service wrote it down."""

    timestamp: str
    """ISO 8601 in UTC: sorts as text."""
    service: str
    event: str
    fields: dict[str, Any]

    def names(self, entity_id: str) -> bool:
        """Whether the id stands in one of the fields, alone or in a list."""
        return any(_holds(value, entity_id) for value in self.fields.values())


def story(
    entity_id: Annotated[
        str,
        typer.Argument(
            metavar="ID",
            help="A request, node, worker, replica or hand-over.",
            autocompletion=entity_ids,
        ),
    ],
    data_folder: DataFolder = DEFAULT_DATA_FOLDER,
    log_folder: Annotated[
        Path | None, typer.Option("--logs", help="Logs from elsewhere, one JSON line each.")
    ] = None,
    is_json: AsJson = False,
) -> None:
    """Tell everything that happened to ID, in order, with the cause of each step."""
    folder = log_folder or data_folder / "logs"
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no logs there; name their folder with --logs")
    lines = story_of(entity_id, read_logs(sorted(folder.glob("*.log"))))
    if not lines:
        raise ConfigError(f"nothing in {folder} speaks of {entity_id}")
    if is_json:
        show_json({"id": entity_id, "lines": [_as_dictionary(line) for line in lines]})
        return
    for line in lines:
        show(_sentence(line))


def read_logs(paths: Iterable[Path]) -> Iterator[LogLine]:
    """Yield every line that is one of ours; others, such as a library's words, are passed over."""
    for path in paths:
        with path.open("rb") as log:
            for raw in log:
                line = _parse(raw)
                if line is not None:
                    yield line


def story_of(entity_id: str, lines: Iterable[LogLine]) -> list[LogLine]:
    """Return the lines that name the id, also as their cause, in the order of time."""
    told = [
        line for line in lines if line.names(entity_id) or line.fields.get("cause_id") == entity_id
    ]
    return sorted(told, key=lambda line: line.timestamp)


def _parse(raw: bytes) -> LogLine | None:
    if len(raw) > LINE_BYTES_MAX:
        return None
    try:
        parsed = json.loads(raw)
    except ValueError:
        return None
    if not isinstance(parsed, dict) or not isinstance(parsed.get("timestamp"), str):
        return None
    return LogLine(
        timestamp=parsed["timestamp"],
        service=str(parsed.get("service", "?")),
        event=str(parsed.get("event", "?")),
        fields={key: value for key, value in parsed.items() if key not in FRAME_FIELDS},
    )


def _holds(value: Any, entity_id: str) -> bool:
    if isinstance(value, list | tuple):
        return any(_holds(item, entity_id) for item in value)
    if isinstance(value, dict):
        return any(_holds(item, entity_id) for item in value.values())
    return isinstance(value, str) and value == entity_id


def _sentence(line: LogLine) -> str:
    details = "  ".join(f"{key}={line.fields[key]}" for key in sorted(line.fields))
    return f"{line.timestamp}  {line.service:<18} {line.event:<24} {details}"


def _as_dictionary(line: LogLine) -> dict[str, Any]:
    return {
        "timestamp": line.timestamp,
        "service": line.service,
        "event": line.event,
        **line.fields,
    }
