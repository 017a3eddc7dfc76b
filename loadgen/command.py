"""`python -m loadgen`: runs a load, or tells what a trace holds. See arguments.EPILOG."""

import argparse
import asyncio
import json
import shlex
import signal
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from libs.kernel.errors import (
    EXIT_CONFIG_ERROR,
    EXIT_INVARIANT_VIOLATION,
    ConfigError,
    InvariantViolation,
    Unavailable,
)
from libs.kernel.units import NS_PER_MS
from libs.runtime.clock import Clock, SystemClock
from loadgen.arguments import argument_parser, run_options
from loadgen.clients.over_http import HttpSender
from loadgen.clients.over_nats import NatsSender
from loadgen.clients.sender import Sender
from loadgen.options import RunOptions
from loadgen.plan import Load, planned
from loadgen.records import Outcome, RequestRecord, RunResult
from loadgen.report import summarise
from loadgen.report_json import report_object
from loadgen.report_plot import render_plot
from loadgen.report_table import report_tables
from loadgen.run import LoadRun
from loadgen.trace_summary import summarise_trace
from loadgen.workload import WorkloadTally

EXIT_FAILED: Final = 1
EXIT_UNAVAILABLE: Final = 69
EXIT_INTERRUPTED: Final = 130
STANDARD_OUTPUT: Final = "-"
PIPE_COLUMNS: Final = 160


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A run that has ended."""

    result: RunResult
    tally: WorkloadTally
    started_at_unix_ns: int


def run(arguments: Sequence[str]) -> int:
    """Run the command and return its exit code; an expected failure is one line on stderr."""
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        parsed = argument_parser().parse_args(list(arguments))
        if parsed.command == "trace":
            return _trace(parsed)
        return _load(parsed, reproduce=shlex.join(["python", "-m", "loadgen", *arguments]))
    except SystemExit as exit_request:  # --help.
        return exit_request.code if isinstance(exit_request.code, int) else 0
    except ConfigError as error:
        errors.print(f"loadgen: {error}", markup=False)
        return EXIT_CONFIG_ERROR
    except Unavailable as error:
        errors.print(f"loadgen: {error}", markup=False)
        return EXIT_UNAVAILABLE
    except InvariantViolation as error:
        errors.print(f"loadgen: a bug, please report it: {error}", markup=False)
        return EXIT_INVARIANT_VIOLATION
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


async def measure(
    options: RunOptions,
    load: Load,
    *,
    sender: Sender,
    clock: Clock,
    on_ended: Callable[[RequestRecord], None] = lambda record: None,
) -> Measured:
    """Send the load over this sender; the first Ctrl-C ends the sending. Raises: TraceError."""
    run = LoadRun(sender, limits=options.run_limits(), clock=clock, on_ended=on_ended)
    _stop_at_interrupt(run)
    started_at_unix_ns = clock.now_unix_ns()
    if options.users is None:
        result = await run.open_loop(load.requests)
    else:
        think_ns = round(options.think_ms * NS_PER_MS)
        result = await run.closed_loop(load.requests, users=options.users, think_ns=think_ns)
    return Measured(result=result, tally=load.workload.tally, started_at_unix_ns=started_at_unix_ns)


def _load(parsed: argparse.Namespace, *, reproduce: str) -> int:
    options = run_options(parsed)
    # Mistakes in the options are told before anything is connected.
    load, slo = planned(options), options.slo()
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    with _progress(console, is_quiet=parsed.quiet) as progress:
        measured = asyncio.run(_connected(options, load, progress))
    report = summarise(measured.result, slo=slo)
    is_ok = report.is_clean(reasons_allowed=options.allow_rejected)
    document = {
        **report_object(
            report,
            options=options.as_object(),
            started_at_unix_ns=measured.started_at_unix_ns,
            is_ok=is_ok,
        ),
        "requests_shortened": measured.tally.requests_shortened,
        "requests_skipped": measured.tally.requests_skipped,
        "reproduce": reproduce,
    }
    if parsed.plot is not None:
        plot = render_plot(measured.result.records, duration_ns=report.duration_ns, slo=slo)
        _write(parsed.plot, plot)
    if parsed.json not in (None, STANDARD_OUTPUT):
        _write(Path(parsed.json), json.dumps(document, indent=2) + "\n")
    _show(document if parsed.json == STANDARD_OUTPUT else report_tables(report))
    if report.is_interrupted:
        return EXIT_INTERRUPTED
    if not is_ok:
        console.print(f"reproduce: {reproduce}", markup=False)
    return 0 if is_ok else EXIT_FAILED


async def _connected(options: RunOptions, load: Load, progress: Progress) -> Measured:
    shown = _Shown(progress, requests_max=options.requests)
    clock = SystemClock()
    async with AsyncExitStack() as stack:
        sender: NatsSender | HttpSender
        if options.http is not None:
            sender = HttpSender(
                options.http,
                model=options.model,
                endpoint=options.endpoint,
                sampling=options.sampling(),
                streams_open_max=options.streams_open_max,
                clock=clock,
                api_key=options.api_key(),
            )
        else:
            sender = await NatsSender.connect(
                options.nats_url,
                model=options.model,
                # Never that of another run: a fleet knows a repeated id for the same request.
                run_name=f"load-{clock.now_unix_ns() // NS_PER_MS:x}",
                sampling=options.sampling(),
                streams_open_max=options.streams_open_max,
                clock=clock,
            )
        await stack.enter_async_context(sender)
        return await measure(options, load, sender=sender, clock=clock, on_ended=shown.ended)


def _stop_at_interrupt(run: LoadRun) -> None:
    """Let the first Ctrl-C end the sending, and a second one the process."""
    loop = asyncio.get_running_loop()

    def stop() -> None:
        loop.remove_signal_handler(signal.SIGINT)
        run.stop()

    loop.add_signal_handler(signal.SIGINT, stop)


class _Shown:
    """Shows how far the run is."""

    def __init__(self, progress: Progress, *, requests_max: int) -> None:
        self._progress = progress
        self._not_ok = 0
        self._task = progress.add_task("", total=requests_max)

    def ended(self, record: RequestRecord) -> None:
        """Count one more request."""
        self._not_ok += record.ending.outcome is not Outcome.OK
        told = f"{self._not_ok} not ok" if self._not_ok else "all ok"
        self._progress.update(self._task, advance=1, description=told)


def _progress(console: Console, *, is_quiet: bool) -> Progress:
    return Progress(
        TextColumn("requests"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        console=console,
        disable=is_quiet or not console.is_terminal,
        transient=True,
    )


def _trace(parsed: argparse.Namespace) -> int:
    summary = summarise_trace(parsed.trace, seed=parsed.seed)
    if parsed.json:
        _show(summary)
        return 0
    results = _results()
    for name, value in summary.items():
        results.print(f"{name:<28}{value}", markup=False)
    return 0


def _show(result: object) -> None:
    """Print a result: an object as one line of JSON, else as rich draws it."""
    results = _results()
    if isinstance(result, dict):
        results.file.write(json.dumps(result) + "\n")
        results.file.flush()
    else:
        results.print(result)


def _results() -> Console:
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=PIPE_COLUMNS)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error
