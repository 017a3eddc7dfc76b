"""The file of a batch: where its lines lie, which can be asked, and what is said of the others."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.contracts.batches import BATCH_LINES_MAX, LINE_BYTES_MAX, LINE_ERRORS_MAX, LineError
from services.offline_queue.file_judge import FileJudge, Verdict
from services.offline_queue.line_file import (
    CHAT,
    PART_BYTES,
    PART_LINES,
    BatchLine,
    LineSplitter,
    PartGrouping,
    RawLine,
    read_line,
)

COMPLETIONS = "/v1/completions"


def a_request(custom_id: object = "a", **changes: object) -> dict[str, object]:
    body = {"model": "Tide Tiny", "prompt": "hello"}
    return {
        "custom_id": custom_id,
        "method": "POST",
        "url": COMPLETIONS,
        "body": body,
        **changes,
    }


def raw(content: bytes | dict[str, object]) -> RawLine:
    if isinstance(content, dict):
        content = json.dumps(content).encode()
    return RawLine(number=3, first_byte=0, size_bytes=len(content), content=content)


def judged(*requests: dict[str, object], endpoint: str = COMPLETIONS) -> Verdict:
    judge = FileJudge(endpoint)
    for request in requests:
        judge.feed(json.dumps(request).encode() + b"\n")
    return judge.finish()


def split(content: bytes, cuts: list[int]) -> list[RawLine]:
    splitter = LineSplitter()
    edges = [0, *sorted(min(cut, len(content)) for cut in cuts), len(content)]
    found = []
    for first, last in itertools.pairwise(edges):
        found.extend(splitter.feed(content[first:last]))
    return [*found, *splitter.finish()]


@given(
    st.lists(st.binary(max_size=40).filter(lambda b: b"\n" not in b), max_size=12),
    st.booleans(),
    st.lists(st.integers(0, 500), max_size=8),
)
def test_lines_are_the_same_however_the_bytes_arrive(
    contents: list[bytes], ends_with_newline: bool, cuts: list[int]
) -> None:
    content = b"\n".join(contents) + (b"\n" if ends_with_newline and contents else b"")
    whole = split(content, [])
    assert split(content, cuts) == whole
    assert sum(line.size_bytes for line in whole) == len(content)
    assert [line.number for line in whole] == list(range(1, len(whole) + 1))
    for line in whole:
        piece = content[line.first_byte : line.first_byte + line.size_bytes]
        assert piece.removesuffix(b"\n") == line.content


def test_a_line_that_is_too_long_is_passed_over_and_the_next_one_read() -> None:
    content = b"x" * (LINE_BYTES_MAX + 1) + b"\nshort\n"
    first, second = split(content, [1000, LINE_BYTES_MAX - 1])
    assert first.is_too_long
    assert (first.content, first.size_bytes) == (b"", LINE_BYTES_MAX + 2)
    assert (second.content, second.first_byte) == (b"short", LINE_BYTES_MAX + 2)


@given(st.lists(st.integers(1, 2 * PART_BYTES), max_size=200))
def test_parts_cover_the_file_without_gap_or_overlap(sizes: list[int]) -> None:
    grouping = PartGrouping()
    first_byte, parts = 0, []
    for index, size in enumerate(sizes):
        line = RawLine(number=index + 1, first_byte=first_byte, size_bytes=size, content=b"")
        first_byte += size
        parts += [part for part in [grouping.add(line)] if part is not None]
    parts += [part for part in [grouping.finish()] if part is not None]
    assert [part.part for part in parts] == list(range(len(parts)))
    assert sum(part.size_bytes for part in parts) == first_byte
    for before, after in itertools.pairwise(parts):
        assert before.first_byte + before.size_bytes == after.first_byte
        assert 1 <= after.first_line - before.first_line <= PART_LINES


def test_a_request_is_read_with_what_it_will_take() -> None:
    line = read_line(
        raw(a_request(body={"model": "m", "prompt": "x" * 400, "max_tokens": 9})),
        endpoint=COMPLETIONS,
    )
    assert isinstance(line, BatchLine)
    assert (line.number, line.custom_id) == (3, "a")
    assert (line.prompt_tokens_predicted, line.answer_tokens_predicted) == (100, 9)


@pytest.mark.parametrize(
    ("change", "code", "parameter"),
    [
        ({"custom_id": None}, "missing_required_parameter", "custom_id"),
        ({"custom_id": ""}, "missing_required_parameter", "custom_id"),
        ({"custom_id": 7}, "missing_required_parameter", "custom_id"),
        ({"custom_id": "x" * 513}, "missing_required_parameter", "custom_id"),
        ({"custom_id": "\ud800"}, "invalid_custom_id", "custom_id"),
        ({"method": "GET"}, "invalid_method", "method"),
        ({"url": "/v1/embeddings"}, "mismatched_url", "url"),
        ({"url": None}, "mismatched_url", "url"),
        ({"body": None}, "missing_required_parameter", "body"),
        ({"body": []}, "missing_required_parameter", "body"),
        ({"body": {"model": "m"}}, "invalid_request", "body.prompt"),
        ({"body": {"prompt": "p"}}, "invalid_request", "body.model"),
        ({"body": {"model": "m", "prompt": ""}}, "invalid_request", "body.prompt"),
        ({"body": {"model": "m", "prompt": "p", "n": 99}}, "invalid_request", "body.n"),
        ({"body": {"model": "m", "prompt": "p", "stream": True}}, "invalid_request", "body.stream"),
        (
            {"body": {"model": "m", "prompt": "p", "suffix": "s"}},
            "unsupported_parameter",
            "body.suffix",
        ),
    ],
)
def test_a_line_that_cannot_be_asked_says_why(
    change: dict[str, object], code: str, parameter: str
) -> None:
    error = read_line(raw({**a_request(), **change}), endpoint=COMPLETIONS)
    assert isinstance(error, LineError)
    assert (error.line, error.code, error.parameter) == (3, code, parameter)


@pytest.mark.parametrize(
    "content", [b"{", b"[]", b"7", b"null", b"\xff", b"[" * 100_000, b'{"custom_id": NaN']
)
def test_what_is_no_json_object_is_refused_without_a_crash(content: bytes) -> None:
    error = read_line(raw(content), endpoint=COMPLETIONS)
    assert isinstance(error, LineError)
    assert error.code == "invalid_json_line"


@given(st.binary(max_size=200))
def test_arbitrary_bytes_never_crash(content: bytes) -> None:
    judge = FileJudge(COMPLETIONS)
    judge.feed(content)
    assert judge.finish().errors


def test_a_good_file_has_parts_an_alias_and_no_errors() -> None:
    verdict = judged(*(a_request(f"{n}") for n in range(130)))
    assert verdict.errors == []
    assert (verdict.lines, verdict.alias) == (130, "tide-tiny")
    assert [part.first_line for part in verdict.parts] == [1, 65, 129]
    assert verdict.tokens_predicted == 130 * (1 + 256)


def test_a_chat_file_is_judged_by_the_rules_of_chat() -> None:
    messages = [{"role": "user", "content": [{"type": "image_url"}]}]
    body = {"model": "m", "messages": messages}
    (error,) = judged(a_request(url=CHAT, body=body), endpoint=CHAT).errors
    assert error.parameter == "body.messages[0].content[0].type"


def test_a_custom_id_may_be_used_once() -> None:
    (error,) = judged(a_request("a"), a_request("b"), a_request("a")).errors
    assert (error.code, error.line) == ("duplicate_custom_id", 3)


def test_a_batch_goes_to_one_model() -> None:
    other = {"model": "other", "prompt": "p"}
    (error,) = judged(a_request("a"), a_request("b", body=other)).errors
    assert (error.code, error.line) == ("mismatched_model", 2)


def test_blank_lines_ask_for_nothing_and_keep_the_numbers_of_the_others() -> None:
    judge = FileJudge(COMPLETIONS)
    judge.feed(b"\n  \n" + json.dumps(a_request()).encode() + b"\r\n\n{}")
    verdict = judge.finish()
    assert verdict.lines == 2
    assert [error.line for error in verdict.errors] == [5]


def test_reading_ends_when_enough_is_wrong() -> None:
    judge = FileJudge(COMPLETIONS)
    assert judge.feed(b"{}\n" * (LINE_ERRORS_MAX - 1))
    assert not judge.feed(b"{}\n" * 10)
    assert len(judge.finish().errors) == LINE_ERRORS_MAX


def test_a_batch_has_a_bound_on_its_lines() -> None:
    judge = FileJudge(COMPLETIONS)
    judge._lines = BATCH_LINES_MAX
    assert not judge.feed(json.dumps(a_request()).encode() + b"\n")
    assert judge.finish().errors[0].code == "too_many_lines"
