"""The demo as one watches it: a live picture on a terminal, plain lines elsewhere."""

import asyncio
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.text import Text

from libs.kernel.units import seconds
from libs.runtime.clock import Clock
from services.launcher.console import PROGRESS, say
from services.launcher.demo_load import Load
from services.launcher.fleet_view import FleetView
from services.launcher.status import ROUTER_COLUMNS, WORKER_COLUMNS, table_of


class DemoView:
    """Shows a running load until closed; `tell` adds a line that stays visible."""

    def __init__(self, *, title: str, load: Load, view: FleetView, clock: Clock, streams: int):
        self._title = title
        self._load = load
        self._view = view
        self._clock = clock
        self._streams = streams
        self._started_at_ns = clock.now_ns()
        self._lines: list[str] = []
        self._live: Live | None = None
        self._ticker: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "DemoView":
        if PROGRESS.is_terminal:
            self._live = Live(
                get_renderable=self._picture, console=PROGRESS, refresh_per_second=8, transient=True
            )
            self._live.start()
        else:
            self._ticker = asyncio.create_task(self._tick())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
        if self._ticker is not None:
            self._ticker.cancel()
            await asyncio.gather(self._ticker, return_exceptions=True)
        for line in self._lines if self._live is not None else []:
            say(line)
        say(self._line())

    def tell(self, line: str) -> None:
        """Report an event of the run."""
        self._lines.append(f"{self._elapsed_s():5.1f} s  {line}")
        if self._live is None:
            say(self._lines[-1])

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            say(self._line())

    def _elapsed_s(self) -> float:
        return seconds(self._clock.now_ns() - self._started_at_ns)

    def _line(self) -> str:
        done = sum(record.is_finished for record in self._load.records)
        return (
            f"{self._elapsed_s():5.1f} s  {self._title}: {done}/{self._streams} answers complete,"
            f" {self._load.streams_open} streaming, {self._load.tokens} tokens,"
            f" {len(self._view.workers())} workers, {len(self._view.routers())} routers"
        )

    def _picture(self) -> RenderableType:
        done = sum(record.is_finished for record in self._load.records)
        body: Sequence[RenderableType] = [
            Text(self._line()),
            ProgressBar(total=self._streams, completed=done, width=60),
            Text(""),
            table_of(self._view.workers(), WORKER_COLUMNS),
            Text(""),
            table_of(self._view.routers(), ROUTER_COLUMNS),
            Text(""),
            Text(self._newest_text(), style="dim", overflow="ellipsis", no_wrap=True),
            *(Text(line, style="red") for line in self._lines),
        ]
        return Panel(Group(*body), title="TideServe", border_style="cyan")

    def _newest_text(self) -> str:
        """The end of the answer that got a token last."""
        flowing = [record for record in self._load.records if record.token_at_ns]
        if not flowing:
            return ""
        newest = max(flowing, key=lambda record: record.token_at_ns[-1])
        return "… " + newest.text[-100:].replace("\n", " ")
