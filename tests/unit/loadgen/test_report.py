"""The numbers of a report are those of the records, by the stated rules."""

import io
import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable

import pytest
from rich.console import Console

from libs.kernel.errors import ConfigError
from libs.kernel.units import NS_PER_MS, NS_PER_S
from loadgen.records import Outcome, RequestRecord, RunResult
from loadgen.report import Report, Slo, distribution, percentile, shares, summarise
from loadgen.report_json import report_object
from loadgen.report_plot import render_plot, round_step
from loadgen.report_table import report_tables

Build = Callable[..., RequestRecord]
LIMITS = Slo(ttft_ns=15 * NS_PER_MS, tpot_ns=12 * NS_PER_MS)


def a_result(*records: RequestRecord, unsent: int = 0, duration_s: int = 2) -> RunResult:
    return RunResult(
        records=list(records), requests_unsent=unsent, duration_ns=duration_s * NS_PER_S
    )


@pytest.fixture
def mixed(a_record: Build) -> Report:
    """Two good answers, one slow, and one of everything that went wrong."""
    records = (
        a_record(0),
        a_record(1, late_ms=2),
        a_record(2, tokens_at_ms=(40, 50), ended_at_ms=60),
        a_record(3, tokens_at_ms=(), outcome=Outcome.REJECTED, reason="overloaded"),
        a_record(4, tokens_at_ms=(5,), outcome=Outcome.BROKEN, reason="no_done"),
        a_record(5, tokens_at_ms=(), outcome=Outcome.REJECTED, reason="overloaded"),
        a_record(6, tokens_at_ms=(), outcome=Outcome.FAILED, reason="timeout"),
    )
    return summarise(a_result(*records, unsent=1), slo=LIMITS)


def test_a_percentile_is_the_nearest_rank_and_always_a_measured_value() -> None:
    values = [15, 20, 35, 40, 50]
    assert [percentile(values, p) for p in (1, 5, 20, 30, 40, 50, 99, 100)] == [
        *(15, 15, 15, 20, 20, 35, 50, 50)
    ]
    hundred = list(range(1, 101))
    assert [percentile(hundred, p) for p in (1, 50, 90, 99, 100)] == [1, 50, 90, 99, 100]
    assert percentile([7], 50) == 7


def test_a_distribution_ignores_what_was_not_measured() -> None:
    assert distribution([None, 3, None, 1]).mean_ns == 2
    assert distribution([None]).count == 0


def test_a_record_knows_its_latencies(a_record: Build) -> None:
    record = a_record(sent_at_ms=100, tokens_at_ms=(10, 20, 20, 50), ended_at_ms=55, late_ms=3)
    assert record.ttft_ns == 10 * NS_PER_MS
    assert record.gaps_ns() == [10 * NS_PER_MS, 0, 30 * NS_PER_MS]
    assert record.tpot_ns == 40 * NS_PER_MS // 3
    assert record.end_to_end_ns == 55 * NS_PER_MS
    assert record.lateness_ns == 3 * NS_PER_MS
    assert a_record(tokens_at_ms=(4,)).tpot_ns is None
    assert a_record(tokens_at_ms=()).ttft_ns is None


def test_latencies_are_those_of_answers_that_ended_well(mixed: Report) -> None:
    assert mixed.ttft.count == 3
    assert mixed.ttft.max_ns == 40 * NS_PER_MS
    assert mixed.tbt.count == 5
    assert mixed.lateness.count == 7


def test_attainment_and_goodput_count_everything_that_was_offered(mixed: Report) -> None:
    assert mixed.requests_offered == 8
    assert mixed.requests_in_slo == 2
    assert mixed.attainment == 2 / 8
    assert mixed.per_s(mixed.requests_in_slo) == 1.0
    assert mixed.output_tokens_in_slo == 6
    assert mixed.output_tokens == 9  # What a broken answer brought was received all the same.


@pytest.mark.parametrize(
    ("slo", "is_kept"),
    [
        (Slo(), True),
        (Slo(ttft_ns=10 * NS_PER_MS), True),
        (Slo(ttft_ns=10 * NS_PER_MS - 1), False),
        (Slo(tbt_ns=30 * NS_PER_MS), True),
        (Slo(tbt_ns=30 * NS_PER_MS - 1), False),
        (Slo(tpot_ns=20 * NS_PER_MS), True),
        (Slo(tpot_ns=20 * NS_PER_MS - 1), False),
        (Slo(end_to_end_ns=55 * NS_PER_MS), True),
        (Slo(end_to_end_ns=55 * NS_PER_MS - 1), False),
    ],
)
def test_each_limit_holds_to_the_nanosecond(a_record: Build, slo: Slo, is_kept: bool) -> None:
    record = a_record(tokens_at_ms=(10, 20, 50), ended_at_ms=55)
    assert slo.is_kept_by(record) is is_kept


def test_no_limit_is_kept_by_an_answer_that_is_none(a_record: Build) -> None:
    assert not Slo().is_kept_by(a_record(outcome=Outcome.BROKEN))


def test_an_answer_of_one_token_has_no_gap_that_could_be_too_long(a_record: Build) -> None:
    assert Slo(tbt_ns=1, tpot_ns=1).is_kept_by(a_record(tokens_at_ms=(10,)))


def test_a_limit_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="ttft slo"):
        Slo(ttft_ns=0)


def test_reasons_are_counted_with_an_example(mixed: Report) -> None:
    first = mixed.reasons[0]
    assert (first.outcome, first.reason, first.count) == (Outcome.REJECTED, "overloaded", 2)
    assert (first.example, first.request_id) == ("as told", "r-3")
    assert [reason.reason for reason in mixed.reasons[1:]] == ["no_done", "timeout"]


def test_a_run_is_clean_only_if_everything_ended_ok_or_as_allowed(a_record: Build) -> None:
    good = a_record(0)
    refused = a_record(1, outcome=Outcome.REJECTED, reason="overloaded")
    broken = a_record(2, outcome=Outcome.BROKEN, reason="overloaded")

    def is_clean(result: RunResult, *allowed: str) -> bool:
        return summarise(result, slo=Slo()).is_clean(reasons_allowed=allowed)

    assert is_clean(a_result(good))
    assert not is_clean(a_result(good, refused))
    assert is_clean(a_result(good, refused), "overloaded")
    assert not is_clean(a_result(good, broken), "overloaded")
    assert not is_clean(a_result(good, unsent=1))
    assert not is_clean(a_result())
    interrupted = a_result(good)
    interrupted.is_interrupted = True
    assert not is_clean(interrupted)


def test_the_json_names_its_units_and_how_percentiles_are_taken(mixed: Report) -> None:
    told = report_object(mixed, options={"seed": 7}, started_at_unix_ns=5, is_ok=False)
    told = json.loads(json.dumps(told))
    assert told["type"] == "loadgen_report.v1"
    assert told["percentile_method"] == "nearest_rank"
    assert told["options"] == {"seed": 7}
    assert told["requests"] == {
        **{"offered": 8, "sent": 7, "unsent": 1},
        **{"ok": 3, "rejected": 2, "failed": 1, "broken": 1},
    }
    assert told["ttft_ms"]["p50"] == 10.0
    assert told["ttft_ms"]["max"] == 40.0
    assert told["slo"]["attainment"] == 0.25
    assert told["slo"]["goodput_requests_per_s"] == 1.0
    assert told["slo"]["tbt_ms"] is None


def test_an_empty_run_can_be_told(a_record: Build) -> None:
    empty = summarise(a_result(duration_s=0), slo=Slo())
    told = report_object(empty, options={}, started_at_unix_ns=0, is_ok=False)
    assert told["ttft_ms"] == {"count": 0}
    assert told["output_tokens_per_s"] == 0.0
    assert ElementTree.fromstring(render_plot([], duration_ns=0, slo=Slo()))


def test_the_table_tells_outcomes_latencies_and_reasons(mixed: Report) -> None:
    console = Console(width=160, file=io.StringIO())
    with console.capture() as captured:
        console.print(report_tables(mixed))
    text = captured.get()
    for words in ("requests broken", "TTFT 15 ms", "no_done", "as told (r-4)", "goodput"):
        assert words in text


def test_the_plot_is_an_svg_with_a_mark_for_each_request_that_ended_badly(a_record: Build) -> None:
    records = [a_record(i, sent_at_ms=100 * i) for i in range(20)]
    bad = a_record(20, outcome=Outcome.BROKEN)
    plot = render_plot([*records, bad], duration_ns=2 * NS_PER_S, slo=LIMITS)
    root = ElementTree.fromstring(plot)
    assert root.tag.endswith("svg")
    marks = [line for line in root.iter() if line.get("stroke") == "#c0392b"]
    assert len(marks) == 1
    assert len([line for line in root.iter() if line.tag.endswith("polyline")]) == 3


def test_a_distribution_function_is_thinned_but_keeps_its_end() -> None:
    points = shares(range(1000), points_max=10)
    assert len(points) <= 11
    assert points[-1] == (999, 1.0)
    assert points[0] == (99, 0.1)
    assert shares([], points_max=10) == []


@pytest.mark.parametrize(
    ("least", "step"),
    [(0.0, 1), (1, 1), (1.1, 2), (5, 5), (5.1, 10), (20, 20), (241.5e6, 5 * 10**8)],
)
def test_the_marks_of_an_axis_are_round_numbers(least: float, step: int) -> None:
    assert round_step(least) == step
