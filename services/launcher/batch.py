"""`tideserve batch`: a file of requests, answered while the fleet has room, before a deadline."""

import json
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.progress import TimeElapsedColumn as Elapsed
from rich.table import Table

from libs.kernel.errors import ConfigError, Unavailable
from services.launcher.batch_api import BatchApi, BatchObject, GatewayRefused
from services.launcher.console import PROGRESS, RESULTS, say, show, show_json
from services.launcher.gateway_options import Gateway, takes_gateway

FINAL: Final = ("completed", "failed", "expired", "cancelled")
POLL_S_FIRST: Final = 0.2
POLL_S_MAX: Final = 5.0
SILENCE_S_MAX: Final = 120.0
"""How long to wait for a gateway that does not answer, while a batch is waited for."""
LINE_BYTES_MAX: Final = 1_000_000
ENDPOINT_DEFAULT: Final = "/v1/chat/completions"

app = typer.Typer(help="Answer files of requests while the fleet has room.", no_args_is_help=True)

BatchId = Annotated[str, typer.Argument(help="As `submit` or `list` shows it.")]


@app.command()
@takes_gateway
def submit(
    gateway: Gateway,
    file: Annotated[Path, typer.Argument(help="One JSON request per line, as OpenAI's Batch.")],
    endpoint: Annotated[
        str | None, typer.Option(help="What the lines ask; as the first line says if not given.")
    ] = None,
    window: Annotated[str, typer.Option(help="Time to answer all: 30m, 24h, 2d.")] = "24h",
    metadata: Annotated[list[str] | None, typer.Option(help="key=value; may be repeated.")] = None,
    is_waiting: Annotated[bool, typer.Option("--wait", help="Wait for the end.")] = False,
) -> None:
    """Upload a file and have its lines answered."""
    labels = parse_metadata(metadata or [])
    asked_endpoint = endpoint or endpoint_of(file)
    with gateway.api() as api:
        batch = api.create(
            {
                "input_file_id": api.upload(file),
                "endpoint": asked_endpoint,
                "completion_window": window,
                "metadata": labels or None,
            }
        )
        if not is_waiting:
            _show_batch(batch, is_json=gateway.is_json)
            return
        say(f"{batch['id']} is submitted")
        _end_with(_waited_for(api, batch["id"]), is_json=gateway.is_json)


@app.command()
@takes_gateway
def status(
    gateway: Gateway,
    batch_id: BatchId,
) -> None:
    """Show how far a batch is."""
    with gateway.api() as api:
        _show_batch(api.get(batch_id), is_json=gateway.is_json)


@app.command("list")
@takes_gateway
def list_batches(
    gateway: Gateway,
    limit: Annotated[int, typer.Option(help="How many, the newest first.", min=1)] = 20,
) -> None:
    """Show the newest batches."""
    with gateway.api() as api:
        batches = api.newest(limit)
    if gateway.is_json:
        show_json({"batches": batches})
    else:
        RESULTS.print(batches_table(batches))


@app.command()
@takes_gateway
def cancel(
    gateway: Gateway,
    batch_id: BatchId,
) -> None:
    """End a batch; what is answered already stays."""
    _act(gateway, "cancel", batch_id)


@app.command()
@takes_gateway
def pause(
    gateway: Gateway,
    batch_id: BatchId,
) -> None:
    """Take up no further line until `resume`; the deadline stays."""
    _act(gateway, "pause", batch_id)


@app.command()
@takes_gateway
def resume(
    gateway: Gateway,
    batch_id: BatchId,
) -> None:
    """Go on with a paused batch."""
    _act(gateway, "resume", batch_id)


@app.command()
@takes_gateway
def wait(
    gateway: Gateway,
    batch_id: BatchId,
) -> None:
    """Wait for the end of a batch; exit code 0 only if every line was answered."""
    with gateway.api() as api:
        _end_with(_waited_for(api, batch_id), is_json=gateway.is_json)


@app.command()
@takes_gateway
def results(
    gateway: Gateway,
    batch_id: BatchId,
    folder: Annotated[Path, typer.Option("--into", help="Folder to write to.")] = Path("."),
) -> None:
    """Write ID.output.jsonl and ID.errors.jsonl of a batch that has ended, where there are any."""
    with gateway.api() as api:
        batch = api.get(batch_id)
        if batch["status"] not in FINAL:
            raise GatewayRefused(f"{batch_id} is {batch['status']}; `tideserve batch wait` waits")
        folder.mkdir(parents=True, exist_ok=True)
        written: dict[str, str | None] = {"output": None, "errors": None}
        for kind, field in (("output", "output_file_id"), ("errors", "error_file_id")):
            if batch[field] is not None:
                target = folder / f"{batch['id']}.{kind}.jsonl"
                api.download(batch[field], target)
                written[kind] = str(target)
    if not any(written.values()):
        raise GatewayRefused(f"{batch_id} is {batch['status']} and has no results")
    if gateway.is_json:
        show_json({"batch_id": batch_id, "status": batch["status"], **written})
        return
    for path in written.values():
        if path is not None:
            show(path)


def parse_metadata(labels: Sequence[str]) -> dict[str, str]:
    """Read `key=value` pairs. Raises: ConfigError."""
    metadata = {}
    for label in labels:
        key, equals, value = label.partition("=")
        if not equals or not key:
            raise ConfigError(f"--metadata: must be key=value, not {label!r}")
        metadata[key] = value
    return metadata


def endpoint_of(file: Path) -> str:
    """Return what the first line asks; the gateway's queue judges the lines, this one included."""
    with file.open("rb") as lines:
        first = lines.readline(LINE_BYTES_MAX)
    try:
        url = json.loads(first)["url"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return ENDPOINT_DEFAULT
    return url if isinstance(url, str) else ENDPOINT_DEFAULT


def batches_table(batches: Sequence[BatchObject]) -> Table:
    """Return what a person reads, a row for each batch."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("batch", "state", "model", "lines", "answered", "failed", "due"):
        table.add_column(name, no_wrap=name == "batch")
    for batch in batches:
        counts = batch["request_counts"]
        table.add_row(
            batch["id"],
            _state(batch),
            batch["model"] or "",
            str(counts["total"]),
            str(counts["completed"]),
            str(counts["failed"]),
            _instant(batch["expires_at"]),
        )
    return table


def _act(gateway: Gateway, action: str, batch_id: str) -> None:
    with gateway.api() as api:
        _show_batch(api.act(batch_id, action), is_json=gateway.is_json)


def _waited_for(api: BatchApi, batch_id: str) -> BatchObject:
    """Show the progress of a batch until it is final. Raises: Unavailable after long silence."""
    pause_s = POLL_S_FIRST
    heard_at = time.monotonic()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Elapsed())
    with Progress(*columns, console=PROGRESS) as progress:
        task = progress.add_task("validating", total=None)
        while True:
            try:
                batch = api.get(batch_id)
                heard_at = time.monotonic()
            except Unavailable:
                if time.monotonic() - heard_at > SILENCE_S_MAX:
                    raise
            else:
                _show_progress(progress, task, batch)
                if batch["status"] in FINAL:
                    return batch
            time.sleep(pause_s)
            pause_s = min(POLL_S_MAX, pause_s * 1.3)


def _show_progress(progress: Progress, task: TaskID, batch: BatchObject) -> None:
    counts = batch["request_counts"]
    progress.update(
        task,
        description=_state(batch),
        total=counts["total"] or None,
        completed=counts["completed"] + counts["failed"],
    )


def _end_with(batch: BatchObject, *, is_json: bool) -> None:
    """Show a batch that has ended; the exit code says whether every line was answered."""
    _show_batch(batch, is_json=is_json)
    if batch["status"] != "completed" or batch["request_counts"]["failed"]:
        raise typer.Exit(1)


def _show_batch(batch: BatchObject, *, is_json: bool) -> None:
    if is_json:
        show_json(batch)
        return
    RESULTS.print(batches_table([batch]))
    if batch["warning"]:
        say(batch["warning"])
    for error in (batch["errors"] or {}).get("data", ()):
        where = f"line {error['line']}: " if error["line"] else ""
        say(f"{where}{error['message']}")


def _state(batch: Mapping[str, Any]) -> str:
    state: str = batch["status"]
    return f"{state}, paused" if batch["is_paused"] and state not in FINAL else state


def _instant(at_unix_s: int | None) -> str:
    if at_unix_s is None:
        return ""
    return datetime.fromtimestamp(at_unix_s, tz=UTC).strftime("%Y-%m-%d %H:%M UTC")
