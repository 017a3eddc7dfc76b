"""Which sessions a worker holds: starts, epochs, take-overs, ends and refusals."""

from collections.abc import Callable
from typing import Any

import pytest

from libs.contracts.online import SamplingParameters
from libs.contracts.sessions import RefuseReason, SessionRefused, SessionStarted

AWorker = Callable[..., Any]


def test_a_started_session_is_answered_and_steps_at_once(a_worker: AWorker) -> None:
    worker = a_worker()
    worker.start()
    [(router_id, answer)] = worker.take_answers()
    assert router_id == "router-a"
    assert answer == SessionStarted(worker_id="worker-a", request_id="r", session_epoch=1)
    assert worker.step is not None


def test_a_resumed_session_goes_on_where_it_stopped_with_the_same_tokens(
    a_worker: AWorker, a_start: Callable[..., Any]
) -> None:
    worker = a_worker()
    expected = worker.undisturbed(a_start(), 8)
    worker.start(epoch=4, generated=expected[:5])
    worker.finish_steps(3)
    entries = worker.take_entries()
    assert [e.first_index for e in entries] == [5, 6, 7]
    assert tuple(t for e in entries for t in e.token_ids) == expected[5:]


def test_a_repeated_start_is_answered_again_and_changes_nothing(a_worker: AWorker) -> None:
    worker = a_worker()
    worker.start()
    worker.finish_step()
    worker.start()
    answers = worker.take_answers()
    assert [type(answer) for _, answer in answers] == [SessionStarted, SessionStarted]
    assert worker.core.sessions_held == 1
    worker.take_entries()
    worker.finish_step()
    assert [e.first_index for e in worker.take_entries()] == [1]


def test_a_start_of_an_older_epoch_is_refused_as_stale(a_worker: AWorker) -> None:
    worker = a_worker()
    worker.start(epoch=3)
    worker.take_answers()
    worker.start(epoch=2, router_id="router-old")
    [(router_id, answer)] = worker.take_answers()
    assert router_id == "router-old"
    assert answer.reason is RefuseReason.STALE_EPOCH
    assert answer.session_epoch == 2


def test_a_new_owner_gets_at_once_what_it_lacks_and_nothing_is_computed_again(
    a_worker: AWorker,
) -> None:
    worker = a_worker()
    worker.start()
    worker.finish_steps(4)
    tokens = [t for e in worker.take_entries() for t in e.token_ids]
    worker.take_answers()
    worker.start(epoch=2, router_id="router-b", generated=tuple(tokens[:2]))
    [(router_id, answer)] = worker.take_answers()
    assert (router_id, answer.session_epoch) == ("router-b", 2)
    [(router_id, step)] = worker.take_tokens()
    [entry] = step.entries
    assert router_id == "router-b"
    assert (entry.session_epoch, entry.first_index, list(entry.token_ids)) == (2, 2, tokens[2:])
    worker.finish_step()
    [(router_id, step)] = worker.take_tokens()
    assert (router_id, step.entries[0].first_index) == ("router-b", 4)
    # Eight tokens take eight steps, plus none for a second prefill.
    worker.finish_steps(3)
    assert worker.step is None
    assert worker.core.counters.sessions_rebound == 1


def test_a_new_owner_that_has_journaled_other_tokens_gets_a_fresh_run(a_worker: AWorker) -> None:
    worker = a_worker()
    worker.start()
    worker.finish_steps(4)
    tokens = [t for e in worker.take_entries() for t in e.token_ids]
    changed = (tokens[0], tokens[1] + 1)
    worker.start(epoch=2, generated=changed)
    worker.finish_steps(7)
    assert {e.session_epoch for e in worker.take_entries()} == {2}
    assert worker.core.counters.sessions_rebound == 0


def test_an_owner_that_is_ahead_gets_a_fresh_run_from_its_tokens(
    a_worker: AWorker, a_start: Callable[..., Any]
) -> None:
    worker = a_worker()
    expected = worker.undisturbed(a_start(), 8)
    worker.start()
    worker.finish_step()
    worker.take_entries()
    worker.start(epoch=3, generated=expected[:6])
    worker.finish_steps(3)
    entries = worker.take_entries()
    assert [e.first_index for e in entries] == [6, 7]
    assert tuple(t for e in entries for t in e.token_ids) == expected[6:]


def test_an_owner_behind_the_first_token_generated_here_gets_a_fresh_run(
    a_worker: AWorker, a_start: Callable[..., Any]
) -> None:
    worker = a_worker()
    expected = worker.undisturbed(a_start(), 8)
    worker.start(generated=expected[:5])
    worker.finish_step()
    worker.take_entries()
    worker.start(epoch=2, generated=expected[:3])
    worker.finish_steps(6)
    entries = worker.take_entries()
    assert [e.first_index for e in entries] == [3, 4, 5, 6, 7]
    assert tuple(t for e in entries for t in e.token_ids) == expected[3:]


def test_an_owner_that_asks_for_something_else_gets_a_fresh_run(a_worker: AWorker) -> None:
    worker = a_worker()
    worker.start(max_tokens=8)
    worker.finish_step()
    worker.take_entries()
    worker.start(epoch=2, max_tokens=3)
    worker.finish_steps(4)
    assert worker.take_entries()[-1].finish_reason == "length"
    assert worker.core.counters.sessions_rebound == 0


def test_a_finished_session_is_taken_over_with_its_end(a_worker: AWorker) -> None:
    worker = a_worker()
    worker.start(max_tokens=2)
    worker.finish_steps(2)
    tokens = tuple(t for e in worker.take_entries() for t in e.token_ids)
    worker.start(max_tokens=2, epoch=2, generated=tokens)
    [entry] = worker.take_entries()
    assert (entry.first_index, entry.token_ids, entry.finish_reason) == (2, (), "length")
    worker.acknowledge(next_index=2, epoch=2, is_resend_wanted=True)
    [entry] = worker.take_entries()
    assert entry.finish_reason == "length"
    worker.acknowledge(next_index=2, epoch=2)
    assert worker.core.sessions_held == 0


def test_an_ended_session_frees_its_blocks_even_in_the_middle_of_a_step(a_worker: AWorker) -> None:
    worker = a_worker()
    blocks_free = worker.report().blocks_free
    worker.start()
    worker.finish_step()
    assert worker.report().blocks_free < blocks_free
    worker.end()
    worker.take_entries()
    worker.finish_step()
    assert worker.take_entries() == []
    assert worker.step is None
    report = worker.report()
    assert (report.blocks_free, report.sessions_running) == (blocks_free, 0)
    assert worker.core.sessions_held == 0


def test_an_end_of_an_older_epoch_is_ignored(a_worker: AWorker) -> None:
    worker = a_worker()
    worker.start(epoch=2)
    worker.end(epoch=1)
    assert worker.core.sessions_held == 1
    worker.end(epoch=5)
    assert worker.core.sessions_held == 0
    worker.take_answers()
    worker.start(epoch=5)
    assert worker.take_refusals() == [("r", 5, RefuseReason.STALE_EPOCH)]


def test_an_end_that_overtakes_its_start_is_remembered(a_worker: AWorker) -> None:
    worker = a_worker()
    worker.end(epoch=1)
    worker.start(epoch=1)
    assert worker.take_refusals() == [("r", 1, RefuseReason.STALE_EPOCH)]


@pytest.mark.parametrize(
    ("changes", "reason", "words"),
    [
        ({"alias": "other"}, RefuseReason.WRONG_MODEL, "tide"),
        ({"prompt_token_ids": ()}, RefuseReason.INVALID, "empty"),
        ({"prompt_token_ids": (1000,)}, RefuseReason.INVALID, "vocabulary"),
        ({"prompt_token_ids": tuple(range(200))}, RefuseReason.INVALID, "context"),
        ({"sampling": SamplingParameters(temperature=0.5)}, RefuseReason.INVALID, "seed"),
        ({"generated": (1, 2, 3), "max_tokens": 3}, RefuseReason.INVALID, "generated already"),
    ],
)
def test_what_cannot_run_here_is_refused_with_a_reason(
    a_worker: AWorker, changes: dict[str, Any], reason: RefuseReason, words: str
) -> None:
    worker = a_worker()
    worker.start(**changes)
    [(_, answer)] = worker.take_answers()
    assert isinstance(answer, SessionRefused)
    assert answer.reason is reason
    assert words in answer.message
    assert worker.core.sessions_held == 0


def test_one_session_too_many_is_refused_as_full(a_worker: AWorker) -> None:
    worker = a_worker(sessions_max=2)
    for request_id in ("a", "b", "c"):
        worker.start(request_id)
    assert worker.take_refusals() == [("c", 1, RefuseReason.FULL)]
    worker.end("a")
    worker.start("c", epoch=2)
    assert worker.take_refusals() == []
