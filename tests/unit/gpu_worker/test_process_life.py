"""How a worker announces itself, drains, and ends when its engine fails."""

from collections.abc import Callable
from typing import Any

import pytest

from libs.contracts.sessions import RefuseReason
from services.gpu_worker.commands import EXIT_DRAINED, EXIT_ENGINE_FAILED
from services.gpu_worker.events import DrainRequested

AWorker = Callable[..., Any]


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
