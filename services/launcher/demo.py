"""`tideserve demo`: nodes that come and go under dozens of streams; nothing may be lost.

1. start nats-server, 2 routers, a gateway, planner, migrator and 4 nodes in a folder of their own;
2. ask all questions undisturbed and keep the answers;
3. ask them again; meanwhile one node gets its notice of 30 s, another is killed without any, a new
   one joins, and a router is killed: all with sessions in flight;
4. compare token for token, write the report, fail if one token differs.
"""

import asyncio
import os
import signal
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Final

import typer

from libs.client.client import TideClient
from libs.contracts.placement import Policy
from libs.kernel.units import NS_PER_S, seconds
from libs.runtime.clock import Clock, SystemClock
from services.launcher.connection import connected
from services.launcher.console import say, show, show_json
from services.launcher.demo_load import Load, StreamRecord, wait_until
from services.launcher.demo_report import DemoOutcome, interrupted_answer, write_report
from services.launcher.demo_requests import DemoRequest, demo_requests
from services.launcher.demo_strikes import GRACE_NS, STRIKES, Happening, Striker
from services.launcher.demo_timeline import Timeline
from services.launcher.demo_verdict import Summary, summarise
from services.launcher.demo_view import DemoView
from services.launcher.fleet import Fleet
from services.launcher.local_cloud import LocalCloud
from services.launcher.model_source import find_model
from services.launcher.options import AsJson
from services.launcher.recipes import FleetOptions, PlannedOptions

NODES: Final = 4
ROUTERS: Final = 2
STRETCH: Final = 1.6
"""The disturbed run spreads its arrivals over this times the undisturbed run, which had all at
once: busy on any machine, with room for the survivors to take over."""
DURATION_NS_MIN: Final = GRACE_NS + 4 * NS_PER_S
"""The node under notice is seen to leave."""
DURATION_NS_MAX: Final = 90 * NS_PER_S


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
    policy: Annotated[
        Policy, typer.Option(help="How the fleet follows its nodes.")
    ] = Policy.TIDESERVE,
    is_json: AsJson = False,
) -> None:
    """Watch a fleet lose nodes and a router mid-stream, and no client notice."""
    with tempfile.TemporaryDirectory(prefix="tideserve-demo-") as folder:
        options = DemoOptions(
            fleet=FleetOptions(
                model=find_model(model),
                data_folder=Path(folder),
                routers=ROUTERS,
                http_port=0,
                is_restarting=False,
                planned=PlannedOptions(nodes=NODES, policy=policy),
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


class _Demo:
    def __init__(self, options: DemoOptions, *, clock: Clock) -> None:
        self._options = options
        self._clock = clock
        self._fleet = Fleet(options.fleet, say=say, clock=clock)
        self._cloud = LocalCloud(self._fleet, say=say, clock=clock)
        self._timeline = Timeline(self._fleet.view, clock=clock)
        self._duration_ns = 0

    async def run(self) -> DemoOutcome:
        """Run both passes on one fleet and compare them."""
        main_task = asyncio.current_task()
        assert main_task is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, main_task.cancel)
        try:
            await self._fleet.start()
            await self._cloud.start()
            url = self._fleet.nats_url
            async with connected(url, name="demo") as bus, TideClient(bus) as client:
                undisturbed = await self._undisturbed(client)
                disturbed, happenings = await self._disturbed(client, undisturbed)
        finally:
            say("stopping the fleet")
            await self._cloud.close()
            await self._fleet.stop()
        summary = summarise(disturbed, undisturbed, happenings)
        return DemoOutcome(
            summary=summary,
            disturbed=disturbed,
            undisturbed=undisturbed,
            happenings=happenings,
            shapes=self._timeline.shapes,
            handovers=self._timeline.handovers,
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
    ) -> tuple[list[StreamRecord], list[Happening]]:
        tokens_expected = sum(len(record.token_at_ns) for record in undisturbed)
        load = self._load(client, run_name="disturbed")
        striker = Striker(self._fleet, self._cloud, clock=self._clock)
        happenings: list[Happening] = []
        self._timeline.start()
        async with self._view(load, title="disturbed") as view:
            running = asyncio.create_task(load.run(self._requests(), is_paced=True))
            for strike in STRIKES:
                due = partial(striker.is_due, strike, load, tokens_expected=tokens_expected)
                await wait_until(due, run=running)
                happening = await striker.strike(strike)
                if happening is not None:
                    happenings.append(happening)
                    view.tell(happening.sentence)
            records = await running
        await self._timeline.stop()
        return records, happenings

    def _requests(self) -> list[DemoRequest]:
        options = self._options
        return demo_requests(options.requests, seed=options.seed, duration_ns=self._duration_ns)

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
            f"Fleet: {NODES} nodes, {ROUTERS} routers, 1 gateway, on {os.cpu_count()} cores."
            f" Model: {self._fleet.alias}. Requests arrive within {arrivals_s:.1f} s"
            f" (seed {self._options.seed})."
        )


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
            f"{summary.requests_online} streams, {summary.preemptions_with_notice} node preempted"
            f" with notice, {summary.kills_without_notice} kills without. {verdict}",
            f"{summary.tokens_per_s:.0f} tokens/s; time to first token"
            f" {summary.ttft_p50_ms:.0f} ms (p50), {summary.ttft_p99_ms:.0f} ms (p99).",
            f"Report: {report_folder / 'report.md'}",
        ]
    )
