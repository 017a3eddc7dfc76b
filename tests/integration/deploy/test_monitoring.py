"""Prometheus' own judgement of what operators are given; Grafana's files against one another."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
PROVISIONING = ROOT / "deploy/grafana/provisioning"
RULES = ROOT / "deploy/prometheus/tideserve.rules.yml"
ALERT_TESTS = Path(__file__).with_name("alerts.yml")


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool, which comes with Prometheus, is not installed")
    return subprocess.run([program, *arguments], cwd=ROOT, capture_output=True, text=True)


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def alerts() -> set[str]:
    rules = [rule for group in read(RULES)["groups"] for rule in group["rules"]]
    return {rule["alert"] for rule in rules if "alert" in rule}


def test_prometheus_takes_the_configuration_and_its_rules() -> None:
    result = promtool("check", "config", "deploy/prometheus/prometheus.yml")
    assert result.returncode == 0, result.stdout + result.stderr


def test_each_alert_fires_when_it_should_and_at_no_other_time() -> None:
    result = promtool("test", "rules", str(ALERT_TESTS))
    assert result.returncode == 0, result.stdout + result.stderr


def test_an_alert_that_never_fires_would_be_noticed(tmp_path: Path) -> None:
    rules = RULES.read_text()
    broken = tmp_path / "tideserve.rules.yml"
    broken.write_text(rules.replace("failures_in_row > 5", "failures_in_row > 5000"))
    assert broken.read_text() != rules
    tests = read(ALERT_TESTS)
    tests["rule_files"] = [str(broken)]
    (tmp_path / "alerts.yml").write_text(yaml.safe_dump(tests))
    result = promtool("test", "rules", str(tmp_path / "alerts.yml"))
    assert result.returncode != 0
    assert "TideServeNoticeSourceFails" in result.stdout + result.stderr


def test_every_alert_is_seen_silent_and_firing() -> None:
    healthy, idle, failing = read(ALERT_TESTS)["tests"]
    for quiet in (healthy, idle):
        assert {case["alertname"] for case in quiet["alert_rule_test"]} == alerts()
    samples = [s for case in failing["promql_expr_test"] for s in case["exp_samples"]]
    assert {sample["labels"].split('"')[1] for sample in samples} == alerts()


def test_grafana_finds_its_dashboard_and_prometheus_where_compose_puts_them() -> None:
    services = read(ROOT / "docker-compose.yml")["services"]
    mounts = dict(mount.split(":")[:2] for mount in services["grafana"]["volumes"])
    assert mounts["./deploy/grafana/provisioning"] == "/etc/grafana/provisioning"
    dashboard = mounts["./deploy/grafana/tideserve.json"]
    [provider] = read(PROVISIONING / "dashboards/tideserve.yml")["providers"]
    assert Path(dashboard).parent == Path(provider["options"]["path"])
    assert services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"] == (
        dashboard
    )
    [source] = read(PROVISIONING / "datasources/prometheus.yml")["datasources"]
    assert source["url"] == "http://prometheus:9090"
    assert "prometheus" in services


def test_the_dashboard_chooses_among_datasources_of_the_kind_that_is_provisioned() -> None:
    dashboard = json.loads((ROOT / "deploy/grafana/tideserve.json").read_text())
    [variable] = dashboard["templating"]["list"]
    [source] = read(PROVISIONING / "datasources/prometheus.yml")["datasources"]
    assert (variable["type"], variable["query"]) == ("datasource", source["type"])
    assert source["isDefault"]
