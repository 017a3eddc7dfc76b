"""The dashboard in a real browser while a real fleet loses a node.

`--dashboard-picture FILE` keeps the picture that the README shows.
"""

import asyncio
import importlib.util
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from libs.client.client import TideClient
from libs.contracts.local_cloud import CloudDone, PreemptNode
from services.launcher.fleet import Fleet
from services.launcher.local_cloud import LocalCloud
from services.launcher.model_source import bundled_model
from services.launcher.recipes import FleetOptions, PlannedOptions

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next((path for path in map(shutil.which, BROWSERS) if path), None)
HAS_PLAYWRIGHT = importlib.util.find_spec("playwright") is not None

pytestmark = [
    pytest.mark.timeout(420),
    pytest.mark.skipif(
        BROWSER is None or not HAS_PLAYWRIGHT,
        reason="needs chromium on PATH (apt install chromium) and playwright from pip",
    ),
]

STREAMS = 6
GRACE_MS = 12_000
GRACE_MS_OF_PICTURE = 40_000
SAMPLES_OF_PICTURE = 75
"""A picture is taken late: with lines in the charts, and the hand-over in the list."""
WAIT_S = 100.0
OFFLINE_PRIORITY = -10
PHONE = {"width": 360, "height": 740}

SHOWN = """() => [...document.querySelectorAll('[data-field]')]
  .filter((e) => !e.closest('template'))
  .map((e) => [e.dataset.field, e.textContent])"""
FIELD = "(field) => document.querySelector(`[data-field='${field}']`).textContent"
OVERFLOW = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"
CONTRAST = """() => {
  const channel = (c) => { c /= 255;
    return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4; };
  const light = (rgb) => { const [r, g, b] = rgb.match(/[\\d.]+/g).map(Number);
    return 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b); };
  const ground = (e) => { for (; e; e = e.parentElement) {
    const c = getComputedStyle(e).backgroundColor; if (!/, 0\\)$/.test(c)) return c; }
    return 'rgb(255, 255, 255)'; };
  const texts = [...document.querySelectorAll('main *, header *, footer *')].filter((e) =>
    [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim()) && e.offsetParent);
  return texts.map((e) => {
    const [a, b] = [light(getComputedStyle(e).color), light(ground(e))].sort((x, y) => y - x);
    return [(a + 0.05) / (b + 0.05), e.textContent.trim()];
  }).filter(([ratio]) => ratio < 4.5); }"""


class Stage:
    """A fleet under load and a page that shows it."""

    def __init__(self, fleet: Fleet, cloud: LocalCloud, page: Any) -> None:
        self.fleet = fleet
        self.cloud = cloud
        self.page = page
        self.is_stopping = False
        self.complaints: list[str] = []

    async def until(self, condition: str) -> None:
        """Wait until the page's snapshot meets this expression of JavaScript."""
        await self.page.wait_for_function(
            f"() => {{ const s = window.tideserve.snapshot; return Boolean(s && ({condition})); }}",
            timeout=WAIT_S * 1000,
        )

    async def keep_asking(self, client: TideClient, number: int) -> None:
        """Half of the streams are offline work."""
        asked = 0
        while not self.is_stopping:
            asked += 1
            await client.complete(
                model=self.fleet.alias,
                messages=[{"role": "user", "content": f"question {number}.{asked}"}],
                max_tokens=120,
                ignore_eos=True,
                priority=OFFLINE_PRIORITY if number % 2 else 0,
            )

    async def preempt(self, node_id: str, *, grace_ms: int) -> None:
        order = PreemptNode(operation_id="take-away", node_id=node_id, grace_ms=grace_ms)
        assert isinstance(await self.cloud.carry_out(order), CloudDone)


@asynccontextmanager
async def a_stage(folder: Path) -> AsyncIterator[Stage]:
    from playwright.async_api import async_playwright

    options = FleetOptions(
        model=bundled_model(), data_folder=folder, planned=PlannedOptions(nodes=3), http_port=0
    )
    fleet = Fleet(options, say=print)
    cloud = LocalCloud(fleet, say=print)
    try:
        await fleet.start()
        await cloud.start()
        async with async_playwright() as playwright:
            browser = await playwright.chromium.launch(
                executable_path=BROWSER, args=["--no-sandbox"]
            )
            page = await browser.new_page(viewport={"width": 1280, "height": 1000})
            stage = Stage(fleet, cloud, page)
            page.on("console", lambda message: stage.complaints.append(message.text))
            page.on("pageerror", lambda error: stage.complaints.append(str(error)))
            await page.goto(f"{fleet.http_url}/dashboard")
            yield stage
            await browser.close()
    finally:
        await cloud.close()
        await fleet.stop()


async def play(folder: Path, picture: Path, *, is_kept: bool) -> None:
    async with a_stage(folder) as stage, await TideClient.connect(stage.fleet.nats_url) as client:
        async with asyncio.TaskGroup() as load:
            for number in range(STREAMS):
                load.create_task(stage.keep_asking(client, number))
            await stage.until("s.totals.nodes === 3 && s.online.attainment_percent !== null")
            if is_kept:
                await stage.until(f"window.tideserve.samples.length > {SAMPLES_OF_PICTURE}")
            done = await stage.page.evaluate("() => window.tideserve.snapshot.plan.handovers_done")
            await stage.preempt("node-1", grace_ms=GRACE_MS_OF_PICTURE if is_kept else GRACE_MS)
            await stage.until("s.notices.length === 1")
            if is_kept:
                await stage.until(f"s.plan.handovers_done > {done}")
            await _counts_down(stage)
            await stage.page.screenshot(path=picture, full_page=True)
            await _is_usable(stage)
            await stage.until("s.totals.nodes === 2")
            stage.is_stopping = True
        await _equals_the_reports(stage)
        await _shows_a_lost_gateway(stage)
        assert not stage.complaints


async def _counts_down(stage: Stage) -> None:
    before = int(await stage.page.evaluate(FIELD, "seconds_left"))
    assert 0 < before <= GRACE_MS_OF_PICTURE // 1000
    await stage.until(f"s.notices[0].seconds_left < {before}")
    told = await stage.page.inner_text("#announcements")
    assert told, "a screen reader hears nothing"


async def _is_usable(stage: Stage) -> None:
    """Keyboard, phone width, contrast in both schemes, names for what has none by itself."""
    page = stage.page
    await page.keyboard.press("Tab")
    assert await page.evaluate("() => document.activeElement.className") == "skip"
    await page.focus("#pause")
    await page.keyboard.press("Enter")
    assert await page.get_attribute("#pause", "aria-pressed") == "true"
    await page.keyboard.press("Enter")
    titles = await page.locator("svg[role=img] > title").all_inner_texts()
    for svg in await page.query_selector_all("svg[role=img]"):
        assert "Now" in await svg.text_content()
    assert len(titles) == 3
    assert await page.locator("main, header, footer").count() == 3
    for scheme in ("light", "dark"):
        await page.emulate_media(color_scheme=scheme)
        assert await page.evaluate(CONTRAST) == []
    wide = page.viewport_size
    await page.set_viewport_size(PHONE)
    assert await page.evaluate(OVERFLOW) <= 0, "a phone would have to scroll sideways"
    await page.set_viewport_size(wide)
    await page.emulate_media(color_scheme="light")


async def _equals_the_reports(stage: Stage) -> None:
    """Once nothing moves, every figure is the sum of what the processes report."""
    wanted = "nothing"
    shown: dict[str, str] = {}
    async with asyncio.timeout(WAIT_S):
        while wanted != shown:
            await stage.fleet.view.wait_for_change()
            wanted = _figures(stage.fleet.view)
            shown = {field: await stage.page.evaluate(FIELD, field) for field in wanted}
    for field, text in await stage.page.evaluate(SHOWN):
        assert text not in ("NaN", "undefined", "null", "[object Object]"), field


def _figures(view: Any) -> dict[str, str]:
    workers, routers = view.workers(), view.routers()
    [planner], [migrator] = view.planners(), view.migrators()

    def total(name: str) -> str:
        return f"{sum(getattr(report, name) for report in routers):,}"

    ended = sum(report.online_ended for report in routers)
    within = sum(report.online_within_slo for report in routers)
    return {
        "totals.nodes": str(len({report.node_id for report in workers})),
        "totals.gpus": str(len(workers)),
        "totals.replicas_serving": str(sum(report.is_serving for report in workers)),
        "totals.sessions_running": str(sum(report.sessions_running for report in workers)),
        "online.requests_open": total("sessions_open"),
        "online.requests_accepted": total("sessions_accepted"),
        "online.requests_rejected": total("requests_rejected"),
        "online.requests_failed": total("requests_failed"),
        "online.attainment_percent": f"{100 * within / ended:.1f} %",
        "offline.tokens_generated": total("tokens_offline"),
        "plan.plan_revision": str(planner.plan_revision),
        "plan.plan_revision_reached": str(migrator.plan_revision_reached),
        "plan.handovers_done": str(migrator.handovers_done),
        "plan.tokens_recomputed": f"{sum(report.tokens_recomputed for report in workers):,}",
    }


async def _shows_a_lost_gateway(stage: Stage) -> None:
    gateway = next(child for child in stage.fleet.children if "gateway" in child.name)
    await gateway.stop()
    await stage.page.wait_for_function(
        "() => document.getElementById('connection').dataset.state === 'lost'",
        timeout=WAIT_S * 1000,
    )
    stage.complaints.clear()  # the browser tells of the connection that was refused


def test_a_preemption_is_seen_in_a_browser_and_every_figure_is_a_reports(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    kept = request.config.getoption("--dashboard-picture")
    picture = Path(kept) if kept else tmp_path / "dashboard.png"
    asyncio.run(play(tmp_path / "fleet", picture, is_kept=kept is not None))
    assert picture.stat().st_size > 20_000
