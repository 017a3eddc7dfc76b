"""The watcher's settings and the trace file: what they mean and what they refuse."""

from pathlib import Path
from typing import Any

import pytest

from libs.kernel.errors import ConfigError
from libs.kernel.units import NS_PER_S
from libs.runtime.clock import SystemClock
from libs.runtime.config import read_config
from services.preemption_watcher.config import WatcherConfig
from services.preemption_watcher.sources.open_sources import open_sources
from services.preemption_watcher.sources.trace import TraceLine, read_trace


def a_config(**settings: str) -> WatcherConfig:
    environment = {f"PREEMPTION_WATCHER__{name.upper()}": value for name, value in settings.items()}
    return read_config(WatcherConfig, service="preemption_watcher", environment=environment)


def a_trace(folder: Path, *lines: str) -> Path:
    file = folder / "trace.jsonl"
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


def names_opened(**settings: str) -> list[str]:
    sources = open_sources(a_config(**settings), node_id="node-a", clock=SystemClock())
    return [source.options.name for source in sources]


def test_without_settings_a_watcher_takes_requests_and_asks_nobody() -> None:
    assert names_opened() == []


def test_sources_are_opened_in_their_order() -> None:
    assert names_opened(sources="gcp,manual,aws,slurm,azure") == [
        "gcp",
        "gcp-maintenance",
        "aws",
        "slurm",
        "azure",
    ]


def test_a_pod_is_watched_where_it_is_named() -> None:
    outside = {
        "sources": "kubernetes",
        "kubernetes__base_url": "http://127.0.0.1:1",
        "kubernetes__ca_file": "none",
        "kubernetes__node_name": "gpu-1",
    }
    assert names_opened(**outside) == ["kubernetes"]
    assert names_opened(**outside, kubernetes__pod_name="w-0") == ["kubernetes", "kubernetes-pod"]


def test_signals_mean_something_only_where_slurm_is_a_source() -> None:
    assert a_config(slurm__sigterm_grace_ms="50000").signal_graces_ns == {}
    config = a_config(sources="slurm", slurm__sigusr1_grace_ms="50000")
    assert config.signal_graces_ns == {"SIGTERM": 30 * NS_PER_S, "SIGUSR1": 50 * NS_PER_S}


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"sources": "aws,heaven"}, "sources"),
        ({"sources": "aws,aws"}, "sources"),
        ({"sources": "aws", "aws__base_url": "ftp://x"}, "aws.base_url"),
        ({"sources": "aws", "aws__base_url": "http://[::"}, "aws.base_url"),
        ({"sources": "gcp", "gcp__base_url": "metadata"}, "gcp.base_url"),
        ({"aws__poll_interval_ms": "0"}, "aws.poll_interval_ms"),
        ({"azure__poll_interval_ms": "-1"}, "azure.poll_interval_ms"),
        ({"safety_ms": "-1"}, "safety_ms"),
        ({"grace_ms_max": "-1"}, "grace_ms_max"),
        ({"slurm__sigterm_grace_ms": "-5"}, "slurm.sigterm_grace_ms"),
        ({"sources": "kubernetes"}, "kubernetes.node_name"),
        ({"sources": "eventbridge-sqs"}, "sqs.queue_url"),
        ({"sources": "eventbridge-sqs", "sqs__queue_url": "x"}, "sqs.queue_url"),
        ({"sources": "eventbridge-sqs", "sqs__queue_url": "http://127.0.0.1/1/q"}, "sqs.region"),
        ({"sources": "trace"}, "trace.file"),
        ({"sources": "trace", "trace__file": "/nowhere/at-all"}, "nowhere"),
        ({"aws__colour": "red"}, "colour"),
    ],
)
def test_a_wrong_setting_is_refused_by_its_name(settings: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError, match=f"(?i){field}"):
        names_opened(**settings)


def test_a_service_account_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match=r"kubernetes\.ca_file"):
        names_opened(sources="kubernetes", kubernetes__node_name="n", kubernetes__ca_file="/no/ca")


def test_the_region_of_a_queue_is_read_off_its_url() -> None:
    url = "https://sqs.eu-central-1.amazonaws.com/123456789012/spot"
    assert names_opened(sources="eventbridge-sqs", sqs__queue_url=url) == ["eventbridge-sqs"]


def test_a_trace_is_read_line_by_line(tmp_path: Path) -> None:
    file = a_trace(
        tmp_path,
        '{"at_s": 1.5, "node_id": "a", "action": "preempt", "grace_s": 30}',
        "",
        '{"at_s": 1.5, "node_id": "b", "action": "preempt"}',
        '{"at_s": 2, "node_id": "a", "action": "withdraw"}',
    )
    first, second, third = read_trace(file)
    assert first == TraceLine(
        at_ns=1_500_000_000, node_id="a", action="preempt", grace_ns=30 * NS_PER_S
    )
    assert second.grace_ns is None
    assert third.action == "withdraw"


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('{"at_s": 4, "node_id": "a", "action": "preempt"}', "at_s: lies before"),
        ('{"at_s": -1, "node_id": "a", "action": "preempt"}', "at_s: must be seconds"),
        ('{"at_s": NaN, "node_id": "a", "action": "preempt"}', "at_s: must be seconds"),
        ('{"at_s": true, "node_id": "a", "action": "preempt"}', "at_s: must be seconds"),
        ('{"at_s": 5, "node_id": "a", "action": "preempt", "grace_s": "x"}', "grace_s"),
        ('{"at_s": 5, "node_id": "a", "action": "kill"}', "action"),
        ('{"at_s": 5, "node_id": 3, "action": "preempt"}', "node_id"),
        ('{"at_s": 5, "node_id": "a", "action": "preempt", "why": 1}', "why: no such field"),
        ("[]", "not a JSON object"),
        ("{", "not JSON"),
    ],
)
def test_a_wrong_line_of_a_trace_is_refused_with_its_number(
    tmp_path: Path, line: str, complaint: str
) -> None:
    good = '{"at_s": 5, "node_id": "a", "action": "preempt", "grace_s": 1}'
    with pytest.raises(ConfigError, match=f"trace.jsonl:2: .*{complaint}"):
        read_trace(a_trace(tmp_path, good, line))
