"""The load of the co-serving benchmark: bursts like those recorded, at a rate of our choice."""

import itertools
from pathlib import Path

import pytest

from benchmarks.coserve_load import (
    RATE_PER_S,
    LoadOptions,
    offline_backlog,
    online_load,
    online_trace,
)
from libs.kernel.errors import ConfigError
from loadgen.arrivals import measure_arrivals
from loadgen.lengths import LengthLimits
from services.simulator.coserve.requests import CoserveRequest

AS_RECORDED = LengthLimits()


def test_made_up_arrivals_are_as_bursty_as_those_recorded() -> None:
    trace = online_trace(LoadOptions(requests=8_819, seed=2, limits=AS_RECORDED))
    found = measure_arrivals([request.arrival_ns for request in trace])
    assert found.rate_per_s == pytest.approx(RATE_PER_S, rel=0.3)
    assert 8 < found.cv < 18
    assert 0.65 < found.idle_seconds_share < 0.82
    prompts = sum(request.lengths.prompt_tokens for request in trace) / len(trace)
    assert prompts == pytest.approx(2_048, rel=0.1)


def test_time_is_stretched_until_the_tokens_come_at_the_rate_that_is_wanted() -> None:
    options = LoadOptions(requests=400, slices=4)
    trace = online_trace(options)
    load = online_load(trace, options, tokens_per_s=200, vocabulary_size=100)
    requests = [request for slice_ in load.slices for request in slice_.requests]
    assert len(requests) == 400
    seconds = sum(slice_.duration_ns for slice_ in load.slices) / 1e9
    tokens = sum(len(request.prompt) + request.output_tokens for request in requests)
    assert tokens / seconds == pytest.approx(200, rel=0.02)
    doubled = online_load(trace, options, tokens_per_s=400, vocabulary_size=100)
    assert doubled.speed == pytest.approx(2 * load.speed)


def test_slices_are_consecutive_and_each_begins_with_its_first_request() -> None:
    options = LoadOptions(requests=50, slices=5)
    load = online_load(online_trace(options), options, tokens_per_s=200, vocabulary_size=100)
    assert [len(slice_.requests) for slice_ in load.slices] == [10] * 5
    for slice_ in load.slices:
        arrivals = [request.arrival_ns for request in slice_.requests]
        assert arrivals[0] == 0
        assert arrivals == sorted(arrivals)
        assert arrivals[-1] <= slice_.duration_ns


def test_equal_names_give_equal_backlogs_and_others_share_no_session() -> None:
    def first(name: str) -> list[CoserveRequest]:
        backlog = offline_backlog(LoadOptions(), vocabulary_size=100, name=name)
        return list(itertools.islice(backlog, 5))

    assert first("a") == first("a")
    ids_a, ids_b = ({request.request_id for request in first(name)} for name in ("a", "b"))
    assert not ids_a & ids_b


def test_a_published_trace_is_replayed(tmp_path: Path) -> None:
    trace = tmp_path / "azure.csv"
    rows = [f"2023-11-16 18:15:{second:02}.0,800,40" for second in range(0, 30, 3)]
    trace.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *rows]) + "\n")
    options = LoadOptions(requests=10, slices=2, trace=trace)
    lengths = {request.lengths for request in online_trace(options)}
    assert [(each.prompt_tokens, each.output_tokens) for each in lengths] == [(7, 10)]
    with pytest.raises(ConfigError, match="10"):
        online_trace(LoadOptions(requests=11, slices=2, trace=trace))


def test_more_slices_than_requests_are_refused() -> None:
    with pytest.raises(ConfigError, match="slices"):
        LoadOptions(requests=3, slices=4)
