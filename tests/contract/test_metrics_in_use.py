"""What operators are given speaks of metrics that exist, in PromQL that parses."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from libs.runtime.metrics import FamilyDescription
from tools import document_metrics

ROOT = Path(__file__).resolve().parents[2]
RULES = ROOT / "deploy/prometheus/tideserve.rules.yml"
SCRAPES = ROOT / "deploy/prometheus/prometheus.yml"
GRAFANA = ROOT / "deploy/grafana/tideserve.json"
NAME = re.compile(r"\btideserve_[a-z0-9_]+\b")
DURATION = re.compile(r"^\d+[smh]$")


@pytest.fixture(scope="module")
def families() -> list[FamilyDescription]:
    return document_metrics.families()


@pytest.fixture(scope="module")
def scraped_names(families: list[FamilyDescription]) -> set[str]:
    names = set()
    for family in families:
        suffixes = ("_bucket", "_sum", "_count") if family.kind == "histogram" else ("",)
        names |= {f"{family.name}{suffix}" for suffix in suffixes}
    return names


def rules() -> Iterator[dict[str, Any]]:
    for group in yaml.safe_load(RULES.read_text())["groups"]:
        yield from group["rules"]


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(GRAFANA.read_text())["panels"]
    return found


def grafana_expressions() -> list[str]:
    raw = [target["expr"] for panel in panels() for target in panel["targets"]]
    return [expression.replace("$__rate_interval", "1m") for expression in raw]


def test_metrics_md_is_in_date() -> None:
    written = document_metrics.DOCUMENT.read_text(encoding="utf-8")
    assert written == document_metrics.render(), "run python -m tools.document_metrics"


def test_a_counter_ends_in_total_and_nothing_else_does(families: list[FamilyDescription]) -> None:
    for family in families:
        assert family.name.endswith("_total") == (family.kind == "counter"), family.name
        assert family.help_text, family.name
        assert "_ms" not in family.name, f"{family.name}: base units"
        if family.kind == "histogram":
            assert family.name.endswith("_seconds"), family.name


def test_every_name_that_alerts_and_panels_use_exists(scraped_names: set[str]) -> None:
    expressions = [rule["expr"] for rule in rules()] + grafana_expressions()
    used = {name for expression in expressions for name in NAME.findall(expression)}
    recorded = {rule["record"].partition(":")[0] for rule in rules() if "record" in rule}
    assert used - scraped_names - recorded == set()


def test_every_name_that_the_operators_manual_uses_exists(
    families: list[FamilyDescription],
) -> None:
    known = {family.name for family in families}
    for page in sorted((ROOT / "docs/operators").glob("notices*.md")):
        assert set(NAME.findall(page.read_text())) <= known, page.name


def test_every_expression_parses() -> None:
    for expression in [*(rule["expr"] for rule in rules()), *grafana_expressions()]:
        promql_parser.parse(expression)
    with pytest.raises(ValueError, match="unclosed"):
        promql_parser.parse("sum(rate(tideserve_router_sessions_open[5m])")


def test_labels_that_expressions_select_by_exist(families: list[FamilyDescription]) -> None:
    labels = {family.name: set(family.labels) for family in families}
    expressions = [rule["expr"] for rule in rules()] + grafana_expressions()
    selections = [
        found
        for expression in expressions
        for found in re.findall(r"(tideserve_\w+?)(?:_bucket)?\{([^}]*)\}", expression)
    ]
    assert selections
    for name, selectors in selections:
        assert set(re.findall(r"(\w+)\s*[=!]", selectors)) <= labels[name], name


def test_every_alert_says_how_bad_it_is_and_what_to_do() -> None:
    names = [rule["alert"] for rule in rules() if "alert" in rule]
    assert len(names) == len(set(names)) > 0
    for rule in rules():
        if "alert" in rule:
            assert rule["labels"]["severity"] in ("page", "ticket")
            assert rule["annotations"]["summary"]
            assert rule["annotations"]["action"]
            assert DURATION.match(rule.get("for", "0s"))
        assert set(rule) <= {"alert", "record", "expr", "for", "labels", "annotations"}


def test_every_service_with_a_metrics_port_is_scraped() -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    ports = {
        name: 8000 if name == "http-gateway" else 9100
        for name, service in compose.items()
        if name == "http-gateway"
        or any(key.endswith("__METRICS_PORT") for key in service.get("environment", {}))
    }
    scraped = {
        job["job_name"]: job["dns_sd_configs"][0]["port"]
        for job in yaml.safe_load(SCRAPES.read_text())["scrape_configs"]
    }
    assert scraped == ports


def test_no_two_panels_lie_on_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
