"""Every published format is read, told apart, and refused with file and line where it is wrong."""

from collections.abc import Callable
from pathlib import Path

import pytest

from libs.kernel.errors import ConfigError
from libs.kernel.rng import Rng
from libs.kernel.units import NS_PER_MS, NS_PER_S
from loadgen.lengths import Lengths
from loadgen.traces.detect import (
    TraceFormat,
    detect,
    read_availability,
    read_lengths,
    read_rates,
    read_requests,
)
from loadgen.traces.lines import TraceError

AZURE_2023 = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\r\n"
    "2023-11-16 18:17:03.9799600,4808,10\r\n"
    "2023-11-16 18:17:04.0319600,3180,8"
)
AZURE_2024 = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    "2024-05-10 00:00:00.009930+00:00,2162,5\n"
    "2024-05-10 00:00:01+00:00,2399,6\n"
    "2024-05-10 02:00:01.5+02:00,76,15\n"
)
BURSTGPT = (
    "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "5,ChatGPT,472,18,490,Conversation log\n"
    "45.5,GPT-4,1087,0,1087,API log\n"
)
BURSTGPT_SESSIONS = (
    "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "5.0,1,3,ChatGPT,472,18,490,Conversation log\n"
    '6.0,2,4,"Chat,GPT",7,8,15,Conversation log\n'
)
MOONCAKE = (
    '{"timestamp": 27482, "input_length": 600, "output_length": 52, "hash_ids": [46, 47]}\n'
    '{"timestamp": 30535, "input_length": 512, "output_length": 3, "hash_ids": [46]}\n'
)
LENGTHS = "num_prefill_tokens,num_decode_tokens,num_total_tokens,pd_ratio\n74,918,992,0.08\n"
RATES = "0.58,0.6,0\n"
EVENTS = (
    '[0, "add", {"nodes": ["node-0", "node-1"]}]\n'
    '[90000, "other", {"nodes": [], "required_tpt": 0.8}]\n'
    '[120000, "remove", {"nodes": ["node-0"], "required_tpt": 0.6}]\n'
    '[240000, "DONE", {"nodes": []}]\n'
)
NODE_EVENTS = "480000,add,node1\r\n540000,add,node2\r\n600000,remove,node1\r\n"
NODE_COUNTS = "0,3\r\n60000,5\r\n120000,4\r\n"
SKYPILOT = '{"metadata": {"gap_seconds": 60, "region": "r"}, "data": [2, 2, 4, 1]}'
VIDUR = "time_stats.emb.min,time_stats.emb.median,num_tokens,num_tensor_parallel_workers\n1,2,8,1\n"

FORMATS = [
    (AZURE_2023, TraceFormat.AZURE),
    (AZURE_2024, TraceFormat.AZURE),
    (BURSTGPT, TraceFormat.BURSTGPT),
    (BURSTGPT_SESSIONS, TraceFormat.BURSTGPT),
    (MOONCAKE, TraceFormat.MOONCAKE),
    (LENGTHS, TraceFormat.LENGTH_TABLE),
    (RATES, TraceFormat.ARRIVAL_RATES),
    ("0.5\n0.25\n", TraceFormat.ARRIVAL_RATES),
    (EVENTS, TraceFormat.SPOT_EVENTS),
    (NODE_EVENTS, TraceFormat.NODE_EVENTS),
    (NODE_COUNTS, TraceFormat.NODE_COUNTS),
    ("t_ms,count\r\n0,3\r\n", TraceFormat.NODE_COUNTS),
    (SKYPILOT, TraceFormat.SKYPILOT),
    (SKYPILOT.replace(", ", ",\n  "), TraceFormat.SKYPILOT),
    ("\ufeff\r\n" + AZURE_2023, TraceFormat.AZURE),
    (VIDUR, TraceFormat.OPERATOR_TIMES),
]

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a trace as it stands, line ends included."""

    def to_file(text: str) -> Path:
        path = tmp_path / "a_trace"
        path.write_bytes(text.encode())
        return path

    return to_file


@pytest.mark.parametrize(("text", "expected"), FORMATS)
def test_each_format_is_told_from_the_others(write: Write, text: str, expected: str) -> None:
    assert detect(write(text)) == expected


def test_azure_time_stamps_keep_every_decimal(write: Write) -> None:
    one, other = read_requests(write(AZURE_2023))
    assert one.arrival_ns == 0
    assert other.arrival_ns == 52_000_000
    assert one.lengths == Lengths(prompt_tokens=4808, output_tokens=10)


def test_azure_time_stamps_of_2024_have_an_offset_and_may_lack_decimals(write: Write) -> None:
    arrivals = [request.arrival_ns for request in read_requests(write(AZURE_2024))]
    assert arrivals == [0, NS_PER_S - 9_930_000, 1_500 * NS_PER_MS - 9_930_000]


@pytest.mark.parametrize("text", [BURSTGPT, BURSTGPT_SESSIONS])
def test_burstgpt_is_read_with_and_without_sessions(write: Write, text: str) -> None:
    requests = list(read_requests(write(text)))
    assert requests[0].lengths == Lengths(prompt_tokens=472, output_tokens=18)
    assert requests[0].arrival_ns == 0
    assert requests[1].arrival_ns == round((45.5 - 5 if text is BURSTGPT else 1) * NS_PER_S)


def test_mooncake_keeps_the_blocks_that_requests_share(write: Write) -> None:
    one, other = read_requests(write(MOONCAKE))
    assert one.block_ids == (46, 47)
    assert other.block_ids == (46,)
    assert other.arrival_ns == 3053 * NS_PER_MS


def test_block_ids_beyond_the_precision_of_floats_stay_apart(write: Write) -> None:
    row = '{"timestamp": 0, "input_length": 9, "output_length": 1, "hash_ids": [%d]}\n'
    one, other = read_requests(write(row % 2**63 + row % (2**63 + 1)))
    assert one.block_ids != other.block_ids


def test_lengths_come_from_a_table_and_from_any_trace_of_requests(write: Write) -> None:
    assert list(read_lengths(write(LENGTHS))) == [Lengths(prompt_tokens=74, output_tokens=918)]
    assert [one.output_tokens for one in read_lengths(write(MOONCAKE))] == [52, 3]


def test_rates_hold_for_a_minute_each(write: Write) -> None:
    segments = list(read_rates(write(RATES)))
    assert [segment.rate_per_s for segment in segments] == [0.58, 0.6, 0.0]
    assert {segment.duration_ns for segment in segments} == {60 * NS_PER_S}
    with pytest.raises(TraceError, match="a_trace:2: rate"):
        list(read_rates(write("0.5,0.25,\n1e9\n")))


def test_spot_events_carry_nodes_demand_and_an_end(write: Write) -> None:
    trace = read_availability(str(write(EVENTS)), rng=Rng(0))
    assert trace.counts() == ((0, 2), (120 * NS_PER_S, 1))
    assert trace.nodes_at(120 * NS_PER_S) == ("node-1",)
    assert [change.required_requests_per_s for change in trace.changes] == [None, 0.8, 0.6]
    assert trace.end_at_ns == 240 * NS_PER_S


def test_node_events_end_with_the_last_of_them(write: Write) -> None:
    trace = read_availability(str(write(NODE_EVENTS)), rng=Rng(0))
    assert trace.counts() == ((480 * NS_PER_S, 1), (540 * NS_PER_S, 2), (600 * NS_PER_S, 1))
    assert trace.end_at_ns == 600 * NS_PER_S


@pytest.mark.parametrize("header", ["", "t_ms,count\r\n"])
def test_node_counts_are_read_with_and_without_a_header(write: Write, header: str) -> None:
    trace = read_availability(str(write(header + NODE_COUNTS)), rng=Rng(0))
    assert [nodes for _, nodes in trace.counts()] == [3, 5, 4]


@pytest.mark.parametrize("text", [SKYPILOT, SKYPILOT.replace(", ", ",\n")])
def test_skypilot_ticks_become_changes(write: Write, text: str) -> None:
    trace = read_availability(str(write(text)), rng=Rng(0))
    assert trace.counts() == ((0, 2), (120 * NS_PER_S, 4), (180 * NS_PER_S, 1))
    assert trace.end_at_ns == 240 * NS_PER_S


@pytest.mark.parametrize(
    ("text", "line", "explanation"),
    [
        (AZURE_2023 + "\r\n2023-11-16 18:17:03.0000000,1,1", 4, "earlier"),
        (AZURE_2023 + "\r\nyesterday,1,1", 4, "TIMESTAMP"),
        (AZURE_2023 + "\r\n2023-13-16 18:17:05,1,1", 4, "TIMESTAMP"),
        (AZURE_2023 + "\r\n2023-11-16 18:17:05,1", 4, "2 fields"),
        (AZURE_2023 + "\r\n2023-11-16 18:17:05,1,-1", 4, "GeneratedTokens"),
        (AZURE_2023 + "\r\n2023-11-16 18:17:05,1.5,1", 4, "whole number"),
        (BURSTGPT + "3,ChatGPT,1,1,2,API log\n", 4, "earlier"),
        (BURSTGPT + "nan,ChatGPT,1,1,2,API log\n", 4, "Timestamp"),
        (MOONCAKE + '{"timestamp": 1, "input_length": 1, "output_length": 1}\n', 3, "earlier"),
        (MOONCAKE + "{\n", 3, "not JSON"),
        (MOONCAKE + "[1]\n", 3, "not a JSON object"),
        (MOONCAKE + '{"timestamp": 40000, "output_length": 1}\n', 3, "input_length"),
        (MOONCAKE.replace("[46]", "[46, 47]"), 2, "more blocks"),
        (LENGTHS + "1,2,4,0.5\n", 3, "sum"),
        (LENGTHS + "99999999999,2,4,0.5\n", 3, "num_prefill_tokens is not between"),
        (BURSTGPT + "1e300,ChatGPT,1,1,2,API log\n", 4, "further away"),
        ('"unclosed,1\n', 1, "comma-separated"),
        ("\n\n", 1, "empty"),
        ("once upon a time\n", 1, "known trace format"),
        ('{"a": 1}\n', 1, "known trace format"),
        ("\x00\x01\n", 1, "known trace format"),
    ],
)
def test_a_wrong_line_of_requests_is_named(
    write: Write, text: str, line: int, explanation: str
) -> None:
    path = write(text)
    with pytest.raises(TraceError, match=rf"a_trace:{line}: .*{explanation}"):
        list(read_lengths(path))


@pytest.mark.parametrize(
    ("text", "line", "explanation"),
    [
        (EVENTS + '[250000, "add", {"nodes": ["n"]}]\n', 5, "after DONE"),
        (EVENTS.replace("120000", "80000"), 3, "earlier"),
        (EVENTS.replace('["node-0"], ', '["node-7"], '), 3, "node-7 is removed but is not there"),
        (EVENTS.replace('"node-1"]', '"node-0"]'), 1, "there already"),
        (EVENTS.replace('"other"', '"perhaps"'), 2, "kind"),
        (EVENTS.replace("[90000", "[-1"), 2, "time"),
        (EVENTS.replace('"node-0", ', "7, "), 1, "not a name"),
        ('[0, "add"]\n', 1, "time, kind and details"),
        (NODE_EVENTS + "700000,remove,node1\n", 4, "not there"),
        (NODE_EVENTS + "700000,stop,node2\n", 4, "neither"),
        (NODE_EVENTS + "500000,add,node3\n", 4, "earlier"),
        (NODE_COUNTS + "130000,1,2\n", 4, "time and a count"),
        (NODE_COUNTS + "130000,many\n", 4, "count"),
        (SKYPILOT.replace("60", "0"), 1, "gap_seconds"),
        (SKYPILOT.replace("4", "-4"), 1, r"data\[2\]"),
        (SKYPILOT.replace("4", "true"), 1, r"data\[2\]"),
        ('{"metadata": {}, "data": []}', 1, "metadata"),
    ],
)
def test_a_wrong_line_of_nodes_is_named(
    write: Write, text: str, line: int, explanation: str
) -> None:
    path = write(text)
    with pytest.raises(TraceError, match=rf"a_trace:{line}: .*{explanation}"):
        read_availability(str(path), rng=Rng(0))


def test_a_file_that_holds_something_else_is_refused_by_what_it_is(write: Write) -> None:
    with pytest.raises(ConfigError, match="spot_events holds no requests"):
        read_requests(write(EVENTS))
    with pytest.raises(ConfigError, match="azure says nothing about nodes"):
        read_availability(str(write(AZURE_2023)), rng=Rng(0))
    with pytest.raises(ConfigError, match="mooncake holds no arrival rates"):
        read_rates(write(MOONCAKE))


def test_a_file_that_is_missing_or_not_text_is_told_in_one_line(
    write: Write, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        detect(tmp_path / "nothing")
    path = write("")
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TraceError, match="a_trace:1: not UTF-8"):
        detect(path)


def test_a_long_trace_is_read_a_line_at_a_time(write: Write) -> None:
    requests = read_requests(write(AZURE_2023 + "\r\nbroken"))
    assert next(requests).lengths.prompt_tokens == 4808
    assert next(requests).lengths.prompt_tokens == 3180
    with pytest.raises(TraceError, match=":4:"):
        next(requests)
