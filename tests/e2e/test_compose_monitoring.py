"""Prometheus in the containers' network sees every process; every panel is a query it answers."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
import yaml

from libs.kernel.units import NS_PER_S
from services.launcher.demo_requests import demo_requests
from tests.e2e.compose_project import ROOT, ComposeProject, connected, has_image

pytestmark = pytest.mark.timeout(3600)

SERVICES = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
PANELS = json.loads((ROOT / "deploy/grafana/tideserve.json").read_text())["panels"]
RUNNING = {"gpu-worker": 2, "http-gateway": 1, "offline-queue": 1, "online-router": 2}
Values = dict[str, float]
SCRAPED_TIMEOUT_S = 600.0
POLL_S = 1.0


def start(project: ComposeProject, service: str) -> None:
    image = SERVICES[service]["image"]
    if not has_image(image):
        pytest.skip(f"the image {image} is not here, and nothing is pulled")
    project.compose("--profile", "monitoring", "up", "--detach", "--wait", "--no-deps", service)


async def _ask(project: ComposeProject) -> None:
    async with connected(project) as fleet:
        await fleet.until_workers(RUNNING["gpu-worker"])
        records = await fleet.ask(demo_requests(4, seed=1, duration_ns=NS_PER_S))
        assert all(record.is_finished for record in records)


@pytest.fixture(scope="module")
def prometheus(compose_project: ComposeProject) -> Iterator[httpx.Client]:
    """Prometheus' API, once the fleet has answered."""
    start(compose_project, "prometheus")
    compose_project.compose("up", "--detach")
    asyncio.run(_ask(compose_project))
    url = f"http://127.0.0.1:{compose_project.prometheus_port}/api/v1"
    with httpx.Client(base_url=url, timeout=60) as client:
        yield client


def result(prometheus: httpx.Client, path: str, **parameters: str) -> Any:
    answer = prometheus.get(path, params=parameters).json()
    assert answer["status"] == "success", answer
    return answer["data"]


def until(prometheus: httpx.Client, query: str, is_enough: Callable[[Values], bool]) -> None:
    """Ask until the values, by job, are such: a scrape comes every five seconds."""
    deadline_s = time.monotonic() + SCRAPED_TIMEOUT_S
    values: Values = {}
    while time.monotonic() < deadline_s:
        found = result(prometheus, "/query", query=query)["result"]
        values = {row["metric"].get("job", ""): float(row["value"][1]) for row in found}
        if is_enough(values):
            return
        time.sleep(POLL_S)
    raise AssertionError(f"{query} stayed at {values}")


def test_every_process_of_the_fleet_is_scraped(prometheus: httpx.Client) -> None:
    until(prometheus, "sum by (job) (up)", lambda up: up == RUNNING)


def test_prometheus_has_loaded_every_rule(prometheus: httpx.Client) -> None:
    shipped = yaml.safe_load((ROOT / "deploy/prometheus/tideserve.rules.yml").read_text())
    names = Counter(
        rule.get("alert") or rule["record"]
        for group in shipped["groups"]
        for rule in group["rules"]
    )
    groups = result(prometheus, "/rules")["groups"]
    assert Counter(rule["name"] for group in groups for rule in group["rules"]) == names


def test_prometheus_counts_the_tokens_that_were_answered(prometheus: httpx.Client) -> None:
    tokens = 'sum by (job) (tideserve_router_tokens_relayed_total{work="online"})'
    until(prometheus, tokens, lambda values: values.get("online-router", 0) > 0)


def test_prometheus_answers_every_query_of_every_panel(prometheus: httpx.Client) -> None:
    for panel in PANELS:
        for target in panel["targets"]:
            query = target["expr"].replace("$__rate_interval", "1m")
            result(prometheus, "/query", query=query)


def test_grafana_shows_the_dashboard_without_a_login(compose_project: ComposeProject) -> None:
    start(compose_project, "grafana")
    url = f"http://127.0.0.1:{compose_project.grafana_port}"
    with httpx.Client(base_url=url, timeout=60) as grafana:
        assert grafana.get("/api/health").json()["database"] == "ok"
        dashboard = grafana.get("/api/dashboards/uid/tideserve").json()["dashboard"]
    assert len(dashboard["panels"]) == len(PANELS)
