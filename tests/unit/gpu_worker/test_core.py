"""The worker core: sessions, epochs, delivery, draining, reports."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from libs.contracts.online import FinishReason, SamplingParameters
from libs.contracts.sessions import RefuseReason, SessionRefused, SessionStarted
from libs.contracts.token_step import pack_step
from libs.engine.simulated_runner import simulated_text, simulated_token
from services.gpu_worker.admission import sequence_of
from services.gpu_worker.commands import EXIT_DRAINED, EXIT_ENGINE_FAILED
from services.gpu_worker.events import DrainRequested

AWorker = Callable[..., Any]


def undisturbed(worker: Any, start: Any, count: int) -> tuple[int, ...]:
    request = sequence_of(start, sequence_id="reference")
    return tuple(
        simulated_token(request, index=i, vocabulary_size=worker.options.vocabulary_size)
        for i in range(count)
    )


def test_a_started_session_is_answered_and_steps_at_once(a_worker: AWorker) -> None:
    worker = a_worker()
    worker.start()
    [(router_id, answer)] = worker.take_answers()
    assert router_id == "router-a"
    assert answer == SessionStarted(worker_id="worker-a", request_id="r", session_epoch=1)
    assert worker.step is not None


def test_the_tokens_of_a_step_go_to_each_router_in_one_message(a_worker: AWorker) -> None:
    worker = a_worker()
    worker.start("a")
    worker.finish_step()
    worker.start("b", router_id="router-b")
    worker.start("c", router_id="router-b")
    worker.take_tokens()
    worker.finish_steps(2)
    sent = [(router, [e.request_id for e in step.entries]) for router, step in worker.take_tokens()]
    assert sent == [("router-a", ["a"]), ("router-a", ["a"]), ("router-b", ["b", "c"])]


def test_a_session_ends_at_its_last_token_with_a_reason(a_worker: AWorker) -> None:
    worker = a_worker()
    worker.start(max_tokens=3)
    worker.finish_steps(3)
    entries = worker.take_entries()
    assert [e.first_index for e in entries] == [0, 1, 2]
    assert [e.finish_reason for e in entries] == [None, None, FinishReason.LENGTH]
    assert all(e.texts == tuple(map(simulated_text, e.token_ids)) for e in entries)
    assert worker.step is None


def test_a_resumed_session_goes_on_where_it_stopped_with_the_same_tokens(
    a_worker: AWorker, a_start: Callable[..., Any]
) -> None:
    worker = a_worker()
    expected = undisturbed(worker, a_start(), 8)
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
    expected = undisturbed(worker, a_start(), 8)
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
    expected = undisturbed(worker, a_start(), 8)
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


def test_a_finished_session_is_forgotten_once_its_last_token_is_acknowledged(
    a_worker: AWorker,
) -> None:
    worker = a_worker()
    worker.start(max_tokens=2)
    worker.finish_steps(2)
    worker.acknowledge(next_index=1)
    assert worker.core.sessions_held == 1
    worker.acknowledge(next_index=2)
    assert worker.core.sessions_held == 0
    worker.take_answers()
    worker.start(max_tokens=2)
    assert worker.take_refusals() == [("r", 1, RefuseReason.STALE_EPOCH)]
    worker.start(max_tokens=2, epoch=2)
    assert worker.core.sessions_held == 1


def test_unacknowledged_tokens_are_sent_again_ever_less_often(a_worker: AWorker) -> None:
    worker = a_worker()
    worker.start(max_tokens=2)
    worker.finish_steps(2)
    worker.take_tokens()
    times_ms = []
    for now_ms in range(0, 8000, 25):
        if entries := worker.take_entries():
            times_ms.append(now_ms)
            assert [(e.first_index, len(e.token_ids)) for e in entries] == [(0, 2)]
            assert entries[0].finish_reason == "length"
        worker.advance(25)
    gaps = [b - a for a, b in pairwise(times_ms)]
    assert 500 <= times_ms[0] <= 650
    assert gaps[:2] == [1000, 2000]
    assert set(gaps[2:]) == {2000}


def test_a_receipt_starts_the_wait_for_a_repetition_anew(a_worker: AWorker) -> None:
    worker = a_worker()
    worker.start()
    worker.finish_steps(4)
    worker.take_tokens()
    for next_index in (1, 2, 3):
        worker.advance(400)
        worker.acknowledge(next_index=next_index)
    assert worker.take_entries() == []
    worker.advance(650)
    [entry] = worker.take_entries()
    assert (entry.first_index, len(entry.token_ids)) == (3, 1)


def test_a_receipt_makes_repetitions_prompt_again(a_worker: AWorker) -> None:
    worker = a_worker()
    worker.start()
    worker.finish_steps(4)
    worker.advance(5_000)
    worker.take_tokens()
    worker.acknowledge(next_index=2)
    worker.advance(650)
    [entry] = worker.take_entries()
    assert entry.first_index == 2


def test_new_tokens_do_not_put_the_repetition_of_old_ones_off(a_worker: AWorker) -> None:
    worker = a_worker()
    worker.start()
    for _ in range(7):
        worker.finish_step()
        worker.advance(100)
    assert [e for e in worker.take_entries() if len(e.token_ids) > 1] != []


def test_acknowledged_tokens_are_never_sent_again(a_worker: AWorker) -> None:
    worker = a_worker()
    worker.start()
    worker.finish_steps(4)
    worker.acknowledge(next_index=4)
    worker.take_tokens()
    worker.advance(5000)
    assert worker.take_tokens() == []
    worker.acknowledge(next_index=2, is_resend_wanted=True)
    assert worker.take_tokens() == []


def test_a_wanted_repetition_is_sent_at_once_from_the_next_index(a_worker: AWorker) -> None:
    worker = a_worker()
    worker.start()
    worker.finish_steps(4)
    worker.take_tokens()
    worker.acknowledge(next_index=1, is_resend_wanted=True)
    [entry] = worker.take_entries()
    assert (entry.first_index, len(entry.token_ids)) == (1, 3)


def test_a_probe_of_a_session_with_nothing_new_is_answered(a_worker: AWorker) -> None:
    worker = a_worker()
    worker.start()
    worker.finish_step()
    worker.take_answers()
    worker.acknowledge(next_index=1, is_resend_wanted=True)
    assert [type(answer) for _, answer in worker.take_answers()] == [SessionStarted]
    worker.acknowledge(next_index=1)
    assert [type(answer) for _, answer in worker.take_answers()] == [SessionStarted]


def test_acknowledgements_in_the_usual_flow_are_not_answered(a_worker: AWorker) -> None:
    worker = a_worker()
    worker.start()
    worker.take_answers()
    for index in range(8):
        worker.finish_step()
        worker.acknowledge(next_index=index + 1)
    assert worker.take_answers() == []


def test_a_receipt_for_an_unknown_session_or_a_later_epoch_is_refused(a_worker: AWorker) -> None:
    worker = a_worker()
    worker.acknowledge("ghost", next_index=3)
    worker.start()
    worker.acknowledge(next_index=0, epoch=2)
    assert worker.take_refusals() == [
        ("ghost", 1, RefuseReason.UNKNOWN_SESSION),
        ("r", 2, RefuseReason.UNKNOWN_SESSION),
    ]
    assert worker.core.sessions_held == 1


def test_a_receipt_of_an_older_epoch_or_beyond_the_tokens_counts_for_nothing(
    a_worker: AWorker,
) -> None:
    worker = a_worker()
    worker.start(epoch=2)
    worker.finish_steps(3)
    worker.take_tokens()
    worker.acknowledge(next_index=3, epoch=1)
    worker.acknowledge(next_index=99, epoch=2)
    assert worker.core.counters.stale_dropped == 1
    worker.advance(700)
    [entry] = worker.take_entries()
    assert (entry.first_index, len(entry.token_ids)) == (0, 3)


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


def test_a_finished_session_that_nobody_acknowledges_is_dropped_after_a_minute(
    a_worker: AWorker,
) -> None:
    worker = a_worker()
    worker.start(max_tokens=2)
    worker.finish_steps(2)
    worker.advance(59_000)
    assert worker.core.sessions_held == 1
    worker.advance(2_000)
    assert worker.core.sessions_held == 0
    assert worker.core.counters.sessions_abandoned == 1
    worker.take_tokens()
    worker.advance(10_000)
    assert worker.take_tokens() == []


def test_a_failed_step_sends_its_sessions_away_and_ends_the_process(a_worker: AWorker) -> None:
    worker = a_worker()
    worker.start("poison")
    worker.start("bystander")
    worker.take_answers()
    worker.fail_step("boom")
    assert worker.take_refusals() == [
        ("poison", 1, RefuseReason.ENGINE_ERROR),
        ("bystander", 1, RefuseReason.DRAINING),
    ]
    assert worker.exit_code == EXIT_ENGINE_FAILED
    assert "boom" in worker.stopped.message
    worker.start("late")
    assert worker.take_answers() == []


def test_a_draining_worker_refuses_new_sessions_and_finishes_what_runs(a_worker: AWorker) -> None:
    worker = a_worker()
    worker.start(max_tokens=2)
    worker.take_reports()
    worker.handle(DrainRequested(cause_id="signal"))
    [report] = worker.take_reports()
    assert report.is_draining
    worker.start("late")
    assert worker.take_refusals() == [("late", 1, RefuseReason.DRAINING)]
    worker.finish_steps(2)
    worker.advance(400)
    assert worker.exit_code is None
    worker.acknowledge(next_index=2)
    worker.advance(200)
    assert worker.exit_code == EXIT_DRAINED


def test_an_idle_worker_drains_after_routers_could_hear_of_it(a_worker: AWorker) -> None:
    worker = a_worker()
    worker.handle(DrainRequested(cause_id="signal"))
    worker.advance(200)
    assert worker.exit_code is None
    worker.advance(250)
    assert worker.exit_code == EXIT_DRAINED


def test_a_session_that_outlasts_the_drain_is_sent_away(a_worker: AWorker) -> None:
    worker = a_worker(drain_ns_max=1_000_000_000)
    worker.start()
    worker.take_answers()
    worker.handle(DrainRequested(cause_id="signal"))
    worker.finish_step()
    worker.advance(1_000)
    assert worker.take_refusals() == [("r", 1, RefuseReason.DRAINING)]
    assert worker.exit_code == EXIT_DRAINED


def test_a_second_request_to_drain_ends_the_wait(a_worker: AWorker) -> None:
    worker = a_worker()
    worker.start()
    worker.take_answers()
    worker.handle(DrainRequested(cause_id="signal"))
    worker.handle(DrainRequested(cause_id="signal"))
    assert worker.take_refusals() == [("r", 1, RefuseReason.DRAINING)]
    assert worker.exit_code == EXIT_DRAINED


def test_reports_come_at_their_interval_and_count(a_worker: AWorker) -> None:
    worker = a_worker()
    worker.start()
    worker.finish_steps(3)
    worker.advance(1_000)
    reports = worker.take_reports()
    assert [report.beat for report in reports] == [0, 1, 2, 3, 4, 5]
    last = reports[-1]
    assert (last.steps, last.tokens_generated, last.sessions_running) == (3, 3, 1)
    assert last.step_ms_recent == pytest.approx(1.0)
    assert len(last.prefix_hashes) == 1
    assert (last.worker_id, last.alias, last.process_id) == ("worker-a", "tide", 7)


def test_a_long_backlog_is_split_into_messages_below_the_bound(a_worker: AWorker) -> None:
    worker = a_worker(message_bytes_max=600, resend_tokens_max=1_000)
    for request_id in ("a", "b", "c"):
        worker.start(request_id, max_tokens=40)
    worker.finish_steps(41)
    worker.take_tokens()
    worker.advance(700)
    entries = worker.take_tokens()
    assert len(entries) == 3
    for _, step in entries:
        [entry] = step.entries
        assert len(pack_step(step)) <= 600
        assert entry.first_index == 0
        assert 0 < len(entry.token_ids) < 40
        assert entry.finish_reason is None


def test_a_backlog_arrives_whole_however_many_repetitions_it_takes(a_worker: AWorker) -> None:
    worker = a_worker(message_bytes_max=600, resend_tokens_max=16)
    worker.start(max_tokens=40)
    worker.finish_steps(40)
    expected = [t for e in worker.take_entries() for t in e.token_ids]
    received: list[int] = []
    while worker.core.sessions_held:
        worker.advance(2_200)
        entry = worker.take_entries()[-1]
        received += entry.token_ids[len(received) - entry.first_index :]
        worker.acknowledge(next_index=len(received))
    assert received == expected


def test_a_start_under_a_higher_epoch_is_refused_while_draining_and_the_old_run_ends(
    a_worker: AWorker,
) -> None:
    worker = a_worker()
    worker.start(generated=(1, 2))
    worker.handle(DrainRequested(cause_id="signal"))
    worker.take_answers()
    worker.start(epoch=2, generated=(9,))
    assert worker.take_refusals() == [("r", 2, RefuseReason.DRAINING)]
    assert worker.core.sessions_held == 0
