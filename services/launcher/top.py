"""`tideserve top`: the fleet as it is, again and again, until Ctrl-C."""

import asyncio

from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from libs.kernel.errors import ConfigError
from services.launcher.connection import connected
from services.launcher.console import RESULTS
from services.launcher.fleet_view import LISTEN_NS, FleetView
from services.launcher.options import DataFolder, NatsUrl
from services.launcher.state_file import DEFAULT_DATA_FOLDER, find_nats_url
from services.launcher.status import tables

REFRESHES_PER_S = 4


def top(
    nats_url: NatsUrl = None,
    data_folder: DataFolder = DEFAULT_DATA_FOLDER,
) -> None:
    """Watch nodes, replicas, workers and hand-overs live; Ctrl-C ends it."""
    if not RESULTS.is_terminal:
        raise ConfigError("top: needs a terminal; use `tideserve status --json` in a script")
    asyncio.run(_watch(find_nats_url(nats_url, data_folder)))


async def _watch(url: str) -> None:
    async with connected(url, name="tideserve-top") as bus:
        view = FleetView()
        await view.start(bus)
        try:
            with Live(
                get_renderable=lambda: _picture(view),
                console=RESULTS,
                refresh_per_second=REFRESHES_PER_S,
                screen=True,
            ):
                # The picture is redrawn by its own thread; this one only has to stay.
                await asyncio.Event().wait()
        finally:
            await view.close()


def _picture(view: FleetView) -> RenderableType:
    shown = [table for table in tables(view) if table.row_count]
    if not shown:
        return Text(f"nobody has reported yet; the first look takes {LISTEN_NS / 1e9:.1f} s")
    parts: list[RenderableType] = []
    for table in shown:
        parts += [table, Text("")]
    return Group(*parts)
