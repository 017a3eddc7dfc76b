"""How a worker gets its tokens to the routers: messages, receipts, repetitions, probes."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

from libs.contracts.online import FinishReason, SamplingParameters
from libs.contracts.sessions import RefuseReason, SessionStarted
from libs.contracts.token_step import pack_step, unpack_step
from libs.engine.simulated_runner import simulated_text

AWorker = Callable[..., Any]


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


def test_log_probabilities_go_with_every_token_and_every_repetition(a_worker: AWorker) -> None:
    worker = a_worker()
    sampling = SamplingParameters(temperature=0.0, logprobs=2)
    worker.start(max_tokens=4, sampling=sampling)
    worker.start("plain", max_tokens=4)
    worker.finish_steps(4)
    sent = [entry for entry in worker.take_entries() if entry.request_id == "r"]
    assert [len(entry.logprobs) for entry in sent] == [1] * 4
    assert all(len(entry.logprobs[0].best) == 2 for entry in sent)
    assert [e.logprobs[0].chosen.token_id for e in sent] == [e.token_ids[0] for e in sent]
    worker.acknowledge(next_index=1)
    worker.advance(1_000)
    again, plain = worker.take_entries()[-2:]
    assert (again.first_index, again.logprobs) == (1, tuple(e.logprobs[0] for e in sent[1:]))
    assert plain.logprobs == ()
    worker.start(epoch=2, max_tokens=4, sampling=sampling, generated=again.token_ids[:0])
    [rebound] = worker.take_entries()
    assert rebound.logprobs == tuple(e.logprobs[0] for e in sent)


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


def test_log_probabilities_count_towards_the_bound_of_a_message(a_worker: AWorker) -> None:
    worker = a_worker(message_bytes_max=4_000, resend_tokens_max=1_000)
    sampling = SamplingParameters(temperature=0.0, logprobs=20)
    for request_id in ("a", "b"):
        worker.start(request_id, max_tokens=40, sampling=sampling)
    worker.finish_steps(41)
    worker.take_tokens()
    worker.advance(700)
    messages = worker.take_tokens()
    assert len(messages) == 2
    for _, step in messages:
        assert len(pack_step(step)) <= 4_000
        assert 2 < len(step.entries[0].token_ids) < 40
        assert unpack_step(pack_step(step)) == step


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
