"""A stream counts as an answer only if everything about it agrees."""

import json

import pytest

from loadgen.clients.answer_check import AnswerCheck
from loadgen.records import Ending, Outcome

TOKENS = 3


def chunk(text: str = "", **more: object) -> str:
    choice = {"index": 0, "text": text, "finish_reason": None, **more}
    return "data: " + json.dumps({"id": "a", "choices": [choice], "usage": None})


def usage(prompt_tokens: int = 2, completion_tokens: int = TOKENS) -> str:
    counts = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
    return "data: " + json.dumps({"id": "a", "choices": [], "usage": counts})


FINISH = chunk(finish_reason="length")
DONE = "data: [DONE]"
WHOLE = [chunk("The"), "", chunk(" tide"), ": comment", chunk("."), FINISH, usage(), DONE]


def a_check(**options: int | bool | None) -> AnswerCheck:
    given = {"output_tokens_max": TOKENS, "is_length_exact": True, "token_ids_sent": 2, **options}
    return AnswerCheck(**given)  # type: ignore[arg-type]


def verdict_on(lines: list[str], *, cut: str | None = None, **options: int | bool | None) -> Ending:
    check = a_check(**options)
    for line in lines:
        check.take_line(line)
    return check.verdict(cut=cut)


def test_a_whole_answer_is_ok() -> None:
    assert verdict_on(WHOLE) == Ending(outcome=Outcome.OK, finish_reason="length")


def test_a_chat_answer_is_read_from_its_deltas() -> None:
    check = a_check()
    pieces = [{"role": "assistant"}, {"content": "a"}, {"content": "b"}, {"content": "c"}]
    choices = [{"index": 0, "delta": delta, "finish_reason": None} for delta in pieces]
    lines = ["data:" + json.dumps({"id": "a", "choices": [choice]}) for choice in choices]
    assert [check.take_line(line) for line in lines] == [0, 1, 1, 1]
    end = {"index": 0, "delta": {}, "finish_reason": "length"}
    for line in ("data:" + json.dumps({"id": "a", "choices": [end]}), usage(), DONE):
        check.take_line(line)
    assert check.verdict(cut=None).outcome is Outcome.OK


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ([], "no_finish_reason"),
        (WHOLE[:3], "no_finish_reason"),
        ([line for line in WHOLE if line != FINISH], "no_finish_reason"),
        (WHOLE[:-1], "no_done"),
        ([line for line in WHOLE if line != usage()], "no_usage"),
        ([*WHOLE, chunk("more")], "after_done"),
        ([*WHOLE, DONE], "after_done"),
        ([chunk("a"), FINISH, chunk("b"), usage(), DONE], "after_finish"),
        ([chunk("a"), FINISH, FINISH, usage(), DONE], "finish_reason"),
        ([chunk("a"), chunk(finish_reason="because"), usage(), DONE], "finish_reason"),
        (["data: {nonsense", *WHOLE], "malformed"),
        (["data: [1]", *WHOLE], "malformed"),
        (['data: {"id": "a"}', *WHOLE], "malformed"),
        ([chunk("x", index=1), *WHOLE], "malformed"),
        ([*WHOLE[:-1], usage(), DONE], "malformed"),
        (['data: {"id": "b", "choices": []}', *WHOLE], "id_changed"),
        ([chunk("a"), chunk("b"), chunk("c"), chunk("d"), *WHOLE[5:]], "token_count"),
        ([chunk("a"), FINISH, usage(completion_tokens=2), DONE], "too_few_tokens"),
        ([chunk("a"), FINISH, usage(completion_tokens=4), DONE], "too_many_tokens"),
        (
            [chunk("a"), chunk(finish_reason="stop"), usage(completion_tokens=1), DONE],
            "too_few_tokens",
        ),
        ([*WHOLE[:-2], usage(prompt_tokens=3), DONE], "prompt_tokens"),
    ],
)
def test_a_stream_that_is_no_answer_is_broken(lines: list[str], reason: str) -> None:
    ending = verdict_on(lines)
    assert (ending.outcome, ending.reason) == (Outcome.BROKEN, reason)


def test_a_connection_that_is_cut_is_broken_even_after_done() -> None:
    assert verdict_on(WHOLE, cut="reset").reason == "connection_cut"
    assert verdict_on(WHOLE[:3], cut="reset").outcome is Outcome.BROKEN


def test_an_error_event_is_a_failure_that_was_told_whatever_follows_it() -> None:
    error = 'data: {"error": {"message": "workers died", "code": "workers_died"}}'
    ending = verdict_on([*WHOLE[:3], error], cut="reset")
    assert (ending.outcome, ending.reason) == (Outcome.FAILED, "workers_died")
    assert ending.explanation == "workers died"


@pytest.mark.parametrize("error", ['"boom"', '{"message": "boom", "type": "x"}', "{}"])
def test_an_error_event_of_any_shape_is_a_failure(error: str) -> None:
    assert verdict_on(['data: {"error": ' + error + "}"]).outcome is Outcome.FAILED


def test_an_answer_may_stop_early_only_where_it_was_allowed_to() -> None:
    lines = [chunk("a"), chunk(finish_reason="stop"), usage(completion_tokens=1), DONE]
    assert verdict_on(lines, is_length_exact=False).finish_reason == "stop"
    assert verdict_on(lines, is_length_exact=True).outcome is Outcome.BROKEN


def test_token_ids_are_counted_where_the_server_gives_them() -> None:
    two, one = chunk("ab", token_ids=[5, 6]), chunk("", token_ids=[7])
    check = a_check()
    assert [check.take_line(line) for line in (two, one)] == [2, 1]
    assert verdict_on([two, one, FINISH, usage(), DONE]).outcome is Outcome.OK
    assert verdict_on([two, FINISH, usage(), DONE]).reason == "token_count"


TOLD = [chunk(text, token_ids=[5]) for text in ("a", "b", "c")] + [FINISH, usage(), DONE]


def test_an_answer_that_lacks_any_one_of_its_events_is_broken() -> None:
    assert verdict_on(TOLD).outcome is Outcome.OK
    for index in range(len(TOLD)):
        ending = verdict_on(TOLD[:index] + TOLD[index + 1 :])
        assert ending.outcome is Outcome.BROKEN, TOLD[index]


def test_an_answer_that_repeats_any_one_of_its_events_is_broken() -> None:
    for index in range(len(TOLD)):
        ending = verdict_on(TOLD[: index + 1] + TOLD[index:])
        assert ending.outcome is Outcome.BROKEN, TOLD[index]


def test_an_answer_that_ends_early_anywhere_is_broken() -> None:
    for index in range(len(TOLD)):
        assert verdict_on(TOLD[:index]).outcome is Outcome.BROKEN


def test_a_usage_so_far_tells_how_many_tokens_a_chunk_carries() -> None:
    def counted(text: str, completion_tokens: int, finish_reason: str | None = None) -> str:
        choice = {"index": 0, "text": text, "finish_reason": finish_reason}
        counts = {"prompt_tokens": 2, "completion_tokens": completion_tokens}
        return "data: " + json.dumps({"id": "a", "choices": [choice], "usage": counts})

    check = a_check()
    lines = [counted("ab", 2), counted("c", 3), counted("", 3, "length"), usage(), DONE]
    assert [check.take_line(line) for line in lines] == [2, 1, 0, 0, 0]
    assert check.verdict(cut=None).outcome is Outcome.OK
    assert verdict_on([counted("ab", 2), FINISH, usage(), DONE]).reason == "token_count"
    assert verdict_on([lines[1], lines[0], *lines[2:]]).reason == "token_count"


def test_the_prompt_is_compared_only_where_its_length_is_known() -> None:
    assert verdict_on([*WHOLE[:-2], usage(9), DONE], token_ids_sent=None).outcome is Outcome.OK
