"""`tideserve demo`: a fleet, dozens of streams, a worker and a router killed; nothing may be lost.

1. start nats-server, 2 routers, 3 workers and a gateway in a folder of their own;
2. ask all questions undisturbed and keep the answers;
3. ask them again, kill a worker, then a router, both with SIGKILL and sessions in flight;
4. compare token for token, write the report, fail if one token differs.
"""

import asyncio
import os
import signal
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import typer

from libs.client.client import TideClient
from libs.contracts.reports import RouterReport, WorkerReport
from libs.kernel.units import NS_PER_S, seconds
from libs.runtime.clock import Clock, SystemClock
from services.launcher.connection import connected
from services.launcher.console import say, show, show_json
from services.launcher.demo_load import Load, StreamRecord, wait_until
from services.launcher.demo_report import DemoOutcome, Kill, interrupted_answer, write_report
from services.launcher.demo_requests import DemoRequest, demo_requests
from services.launcher.demo_verdict import Summary, summarise
from services.launcher.demo_view import DemoView
from services.launcher.fleet import Fleet
from services.launcher.model_source import find_model
from services.launcher.recipes import FleetOptions

WORKERS: Final = 3
ROUTERS: Final = 2
WORKER_KILL_AFTER: Final = 0.30
"""Part of all tokens that clients have when the worker is killed; then more arrive for others."""
ROUTER_KILL_AFTER: Final = 0.60
KILLS: Final = 2
SESSIONS_STRUCK: Final = 3
"""A victim should hold so many sessions; past another half of the tokens one is enough."""
STRETCH: Final = 1.6
"""The disturbed run spreads its arrivals over this times the undisturbed run, which had all at
once: busy on any machine, with room for the survivors to take over."""
DURATION_NS_MIN: Final = 4 * NS_PER_S
DURATION_NS_MAX: Final = 30 * NS_PER_S


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """What one demo does."""

    fleet: FleetOptions
    requests: int
    seed: int
    report_folder: Path


def demo(
    report_folder: Annotated[Path, typer.Option(help="Where the report is written.")] = Path(
        "demo_report"
    ),
    requests: Annotated[int, typer.Option(help="Streams.", min=4, max=512)] = 48,
    seed: Annotated[int, typer.Option(help="Of the arrivals.")] = 1,
    model: Annotated[str | None, typer.Option(help="As for `up`.")] = None,
    is_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Watch a fleet lose a worker and a router mid-stream, and no client notice."""
    with tempfile.TemporaryDirectory(prefix="tideserve-demo-") as folder:
        options = DemoOptions(
            fleet=FleetOptions(
                model=find_model(model),
                data_folder=Path(folder),
                workers=WORKERS,
                routers=ROUTERS,
                http_port=0,
                is_restarting=False,
            ),
            requests=requests,
            seed=seed,
            report_folder=report_folder,
        )
        outcome = asyncio.run(_Demo(options, clock=SystemClock()).run())
    write_report(outcome, report_folder)
    if is_json:
        show_json(outcome.summary.as_dictionary())
    else:
        show(_closing(outcome, report_folder))
    if not outcome.summary.ok:
        raise typer.Exit(1)


Victim = Callable[[], tuple[str, int, int] | None]
"""Finds the process whose death hurts most: its id, process id and number of sessions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Strike:
    """When to kill: after so many tokens, and while the victim holds sessions."""

    load: Load
    find: Victim
    least: int

    def is_due(self) -> bool:
        found = self.find()
        if found is None or self.load.tokens < self.least:
            return False
        return found[2] >= SESSIONS_STRUCK or self.load.tokens >= self.least + self.least // 2


class _Demo:
    def __init__(self, options: DemoOptions, *, clock: Clock) -> None:
        self._options = options
        self._clock = clock
        self._fleet = Fleet(options.fleet, say=say, clock=clock)
        self._duration_ns = 0

    async def run(self) -> DemoOutcome:
        """Run both passes on one fleet and compare them."""
        main_task = asyncio.current_task()
        assert main_task is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, main_task.cancel)
        try:
            await self._fleet.start()
            url = self._fleet.nats_url
            async with connected(url, name="demo") as bus, TideClient(bus) as client:
                undisturbed = await self._undisturbed(client)
                disturbed, kills = await self._disturbed(client, undisturbed)
        finally:
            say("stopping the fleet")
            await self._fleet.stop()
        summary = summarise(disturbed, undisturbed, kills=len(kills), kills_expected=KILLS)
        return DemoOutcome(
            summary=summary,
            disturbed=disturbed,
            undisturbed=undisturbed,
            kills=kills,
            setting=self._setting(),
        )

    async def _undisturbed(self, client: TideClient) -> list[StreamRecord]:
        load = self._load(client, run_name="undisturbed")
        started_at_ns = self._clock.now_ns()
        async with self._view(load, title="undisturbed"):
            records = await load.run(self._requests(), is_paced=False)
        stretched_ns = round(STRETCH * (self._clock.now_ns() - started_at_ns))
        self._duration_ns = min(max(stretched_ns, DURATION_NS_MIN), DURATION_NS_MAX)
        broken = [record for record in records if not record.is_finished]
        if broken:
            say(f"the undisturbed run lost {len(broken)} answers: {broken[0].error}")
        return records

    async def _disturbed(
        self, client: TideClient, undisturbed: list[StreamRecord]
    ) -> tuple[list[StreamRecord], list[Kill]]:
        tokens_expected = sum(len(record.token_at_ns) for record in undisturbed)
        load = self._load(client, run_name="disturbed")
        kills: list[Kill] = []
        async with self._view(load, title="with kills") as view:
            running = asyncio.create_task(load.run(self._requests(), is_paced=True))
            for part, victim in (
                (WORKER_KILL_AFTER, self._busiest_worker),
                (ROUTER_KILL_AFTER, self._busiest_router),
            ):
                strike = _Strike(load=load, find=victim, least=round(part * tokens_expected))
                await wait_until(strike.is_due, run=running)
                kill = self._kill(victim)
                if kill is not None:
                    kills.append(kill)
                    view.tell(f"SIGKILL to {kill.name}, which holds {kill.sessions} sessions")
            records = await running
        return records, kills

    def _requests(self) -> list[DemoRequest]:
        options = self._options
        return demo_requests(options.requests, seed=options.seed, duration_ns=self._duration_ns)

    def _busiest_worker(self) -> tuple[str, int, int] | None:
        """Return id, process and sessions of the worker whose death hurts most."""
        reports = [r for r in self._fleet.view.workers() if r.sessions_running]
        busiest = max(reports, key=_sessions_of, default=None)
        if busiest is None:
            return None
        return busiest.worker_id, busiest.process_id, _sessions_of(busiest)

    def _busiest_router(self) -> tuple[str, int, int] | None:
        reports = [r for r in self._fleet.view.routers() if r.sessions_open]
        busiest = max(reports, key=_sessions_of, default=None)
        if busiest is None:
            return None
        return busiest.router_id, busiest.process_id, _sessions_of(busiest)

    def _kill(self, find: Victim) -> Kill | None:
        found = find()
        if found is None:
            return None
        name, process_id, sessions = found
        child = self._fleet.child_of(process_id)
        if child is None:
            return None
        child.signal(signal.SIGKILL)
        return Kill(name=name, at_ns=self._clock.now_ns(), sessions=sessions)

    def _load(self, client: TideClient, *, run_name: str) -> Load:
        assert self._fleet.http_url is not None
        return Load(
            client=client,
            http_url=self._fleet.http_url,
            alias=self._fleet.alias,
            clock=self._clock,
            run_name=run_name,
        )

    def _view(self, load: Load, *, title: str) -> DemoView:
        return DemoView(
            title=title,
            load=load,
            view=self._fleet.view,
            clock=self._clock,
            streams=self._options.requests,
        )

    def _setting(self) -> str:
        arrivals_s = seconds(self._duration_ns)
        return (
            f"Fleet: {ROUTERS} routers, {WORKERS} workers, 1 gateway, on {os.cpu_count()} cores."
            f" Model: {self._fleet.alias}. Requests arrive within {arrivals_s:.1f} s"
            f" (seed {self._options.seed})."
        )


def _sessions_of(report: WorkerReport | RouterReport) -> int:
    if isinstance(report, WorkerReport):
        return report.sessions_running + report.sessions_waiting
    return report.sessions_open


def _closing(outcome: DemoOutcome, report_folder: Path) -> str:
    summary: Summary = outcome.summary
    verdict = (
        "Nothing was lost, repeated or changed."
        if summary.ok
        else f"FAILED: {summary.lost} lost, {summary.duplicated_tokens} tokens repeated,"
        f" {summary.changed_tokens} changed."
    )
    return "\n".join(
        [
            "",
            *(f"  {line}" for line in interrupted_answer(outcome).splitlines()),
            "",
            f"{summary.requests_online} streams, {summary.kills_without_notice} processes killed"
            f" without notice. {verdict}",
            f"{summary.tokens_per_s:.0f} tokens/s; time to first token"
            f" {summary.ttft_p50_ms:.0f} ms (p50), {summary.ttft_p99_ms:.0f} ms (p99).",
            f"Report: {report_folder / 'report.md'}",
        ]
    )
