"""The demo's comparison: it must be able to fail."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.kernel.units import NS_PER_MS, NS_PER_S
from services.launcher.demo_load import StreamRecord
from services.launcher.demo_requests import DemoRequest, Protocol
from services.launcher.demo_strikes import STRIKES, Happening
from services.launcher.demo_verdict import compare, quantile, summarise, tokens_per_s

HAPPENINGS = [Happening(kind=strike.kind, name="node-1", at_ns=0, sessions=3) for strike in STRIKES]


def a_record(
    *token_ids: int, protocol: Protocol = Protocol.NATS, started_at_ns: int = 0, **changes: Any
) -> StreamRecord:
    request = DemoRequest(
        index=0, protocol=protocol, question="q", temperature=0.0, seed=1, arrival_ns=0
    )
    record = StreamRecord(
        request=request,
        started_at_ns=started_at_ns,
        indices=list(range(len(token_ids))),
        token_ids=list(token_ids),
        texts=[f"t{token_id}" for token_id in token_ids],
        token_at_ns=[started_at_ns + (n + 1) * NS_PER_MS for n in range(len(token_ids))],
        tokens_reported=len(token_ids),
        is_finished=True,
    )
    for name, value in changes.items():
        setattr(record, name, value)
    return record


def test_an_equal_answer_is_equal() -> None:
    assert compare(a_record(1, 2, 3), a_record(1, 2, 3)).is_equal


def test_a_changed_token_is_counted() -> None:
    assert compare(a_record(1, 9, 3), a_record(1, 2, 3)).changed_tokens == 1


def test_a_missing_or_surplus_token_is_counted_as_changed() -> None:
    assert compare(a_record(1, 2), a_record(1, 2, 3)).changed_tokens == 1
    assert compare(a_record(1, 2, 3, 3), a_record(1, 2, 3)).changed_tokens == 1


def test_a_token_delivered_twice_is_counted() -> None:
    twice = a_record(1, 2, 2, 3, indices=[0, 1, 1, 2])
    assert compare(twice, a_record(1, 2, 3)).duplicated_tokens == 1


@pytest.mark.parametrize("change", [{"is_finished": False}, {"error": "aborted"}])
def test_an_answer_without_its_end_is_lost(change: dict[str, Any]) -> None:
    assert compare(a_record(1, 2, 3, **change), a_record(1, 2, 3)).is_lost


def test_over_http_the_text_is_compared_whatever_its_pieces() -> None:
    http = Protocol.HTTP
    undisturbed = a_record(1, 2, 3, protocol=http)
    in_one_piece = a_record(1, 2, 3, protocol=http, texts=["t1t2t3"], token_at_ns=[NS_PER_MS])
    assert compare(in_one_piece, undisturbed).is_equal
    assert compare(a_record(1, 9, 3, protocol=http), undisturbed).changed_tokens == 1
    shorter = a_record(1, 2, 3, protocol=http, tokens_reported=2)
    assert compare(shorter, undisturbed).changed_tokens >= 1


def test_the_summary_is_ok_only_if_every_stream_is_equal_and_every_strike_took_place() -> None:
    same = [a_record(1, 2), a_record(3, 4)]
    other = [a_record(1, 2), a_record(3, 5)]
    assert summarise(same, same, HAPPENINGS).ok
    assert not summarise(same, same, HAPPENINGS[1:]).ok
    disturbed = summarise(other, same, HAPPENINGS)
    assert not disturbed.ok
    assert disturbed.changed_tokens == 1


def test_the_summary_counts_each_kind_of_strike() -> None:
    summary = summarise([a_record(1)], [a_record(1)], HAPPENINGS)
    assert (summary.preemptions_with_notice, summary.kills_without_notice) == (1, 2)
    assert summary.requests_offline == 0
    assert list(summary.as_dictionary()) == [
        "ok",
        "requests_online",
        "requests_offline",
        "lost",
        "duplicated_tokens",
        "changed_tokens",
        "preemptions_with_notice",
        "kills_without_notice",
        "tokens_per_s",
        "ttft_p50_ms",
        "ttft_p99_ms",
    ]


def test_throughput_is_tokens_over_the_span_from_first_request_to_last_token() -> None:
    early = a_record(1, token_at_ns=[NS_PER_S])
    late = a_record(1, 2, started_at_ns=NS_PER_S, token_at_ns=[2 * NS_PER_S, 3 * NS_PER_S])
    assert tokens_per_s([early, late]) == 1.0
    assert tokens_per_s([]) == 0.0


@given(values=st.lists(st.integers(0, 1000), min_size=1), percent=st.integers(1, 100))
def test_a_quantile_covers_its_part_and_the_value_below_does_not(
    values: list[int], percent: int
) -> None:
    ordered = sorted(values)
    value = quantile(ordered, percent / 100)
    covered = sum(v <= value for v in ordered)
    below = sum(v < value for v in ordered)
    assert covered * 100 >= percent * len(ordered)
    assert below * 100 < percent * len(ordered)


def test_the_quantile_of_nothing_is_zero() -> None:
    assert quantile([], 0.5) == 0
