"""What a queue starts, puts off, fails and says of whole batches; `test_holding` has its leases."""

from collections.abc import Callable
from typing import Any

import pytest

from libs.contracts.batches import OFFLINE_PRIORITY, BatchCounts, BatchStatus
from libs.contracts.reports import OfflineQueueReport
from libs.kernel.units import NS_PER_S
from services.offline_queue.commands import (
    AcknowledgePart,
    AskForTask,
    ChangeBatch,
    DropPart,
    FailLine,
    LeaseJobs,
    LeaseParts,
    PublishReport,
    StartLine,
    SurveyBatch,
)
from services.offline_queue.events import (
    BatchForgotten,
    BatchSurveyed,
    JobsLeased,
    LeasedJob,
    LeasedPart,
    QueueReported,
    QueueStopping,
    WaitingLine,
)
from services.offline_queue.records import Counted
from tests.unit.offline_queue.conftest import UNIX_S, a_record, a_worker

ADesk = Callable[..., Any]
BATCH = "batch_00000001"
PART = f"{BATCH}.0"


def surveyed(desk: Any, **counts: int) -> None:
    nothing = {"parts_left": 1, "tasks_left": 0, "completed": 0, "failed": 0}
    desk.tell(BatchSurveyed(batch_id=BATCH, cause_id="t", **{**nothing, **counts}))


# Starting.


def test_without_a_worker_nothing_is_started(a_desk: ADesk) -> None:
    desk = a_desk(workers=0)
    desk.leased([1, 2])
    assert desk.started() == []
    desk.hear(a_worker())
    assert desk.started() == [(PART, 1), (PART, 2)]


def test_a_line_goes_out_below_online_work_and_expires_with_its_batch(a_desk: ADesk) -> None:
    desk = a_desk()
    desk.leased([7])
    start = desk.only(StartLine)
    assert (start.part_key, start.line, start.attempt) == (PART, 7, 0)
    assert start.priority == OFFLINE_PRIORITY
    assert start.expires_after_ns == 86_400 * NS_PER_S


def test_past_its_deadline_nothing_of_a_batch_is_started_and_nothing_failed(
    a_desk: ADesk,
) -> None:
    desk = a_desk(has_batch=False, workers=0)
    desk.read(a_record(deadline_at_unix_s=UNIX_S + 5))
    desk.leased([1])
    desk.pass_seconds(5)
    desk.hear(a_worker())
    assert not desk.all(StartLine)
    assert not desk.all(FailLine), "its clerk tells of all lines that are missing"


def test_the_window_bounds_what_runs_and_grows_with_each_success(a_desk: ADesk) -> None:
    desk = a_desk()
    desk.leased(range(1, 41))
    assert len(desk.started()) == 8
    desk.stored((PART, 1))
    assert len(desk.started()) == 2, "one place is free, and there is one more"


def test_congestion_halves_the_window_once_for_a_burst(a_desk: ADesk) -> None:
    desk = a_desk()
    desk.leased(range(1, 41))
    for start in desk.started():
        desk.put_off(start, is_congestion=True)
    assert desk.core.harvest.window("tiny").lines == 4
    desk.pass_seconds(2)
    desk.fire("report")
    desk.hear(a_worker())
    assert desk.core.intake.running() == 4


def test_lines_are_bounded_by_the_free_blocks_of_the_workers(a_desk: ADesk) -> None:
    desk = a_desk(workers=0)
    desk.leased(range(1, 41))
    desk.hear(a_worker(blocks_free=21))
    assert len(desk.started()) == 3, "a line is predicted to take 100 tokens: 7 blocks"


def test_a_worker_in_which_sessions_wait_has_room_for_one_line_only(a_desk: ADesk) -> None:
    desk = a_desk(workers=0)
    desk.leased(range(1, 41))
    desk.hear(a_worker(sessions_waiting=3))
    assert len(desk.started()) == 1


def test_free_blocks_are_shared_with_the_other_queues(a_desk: ADesk) -> None:
    desk = a_desk(workers=0)
    for queue_id in ("queue-1", "queue-2", "queue-3"):
        report = OfflineQueueReport(queue_id=queue_id, beat=0, process_id=1)
        desk.tell(QueueReported(report=report, cause_id="t"))
    desk.leased(range(1, 41))
    desk.hear(a_worker(blocks_free=42))
    assert len(desk.started()) == 2


def test_lines_with_a_common_beginning_go_out_together(a_desk: ADesk) -> None:
    desk = a_desk(lines_running_max=4)
    prefixes = ["b1", "a1", "b2", "a2"]
    desk.leased([1, 2, 3, 4], prefixes=prefixes)
    assert desk.started() == [(PART, 2), (PART, 4), (PART, 1), (PART, 3)]


def test_a_part_that_waited_long_goes_before_better_prefixes(a_desk: ADesk) -> None:
    desk = a_desk(lines_running_max=1)
    desk.leased([1, 2], prefixes=["y", "z"])
    for _ in range(4):
        desk.pass_seconds(16)
        desk.keep()
    desk.leased([65], part=1, prefixes=["a"])
    desk.hear(a_worker())
    desk.stored((PART, 1))
    assert desk.started() == [(PART, 2)]


def test_tenants_take_turns_by_what_they_were_served(a_desk: ADesk) -> None:
    desk = a_desk(has_batch=False, lines_running_max=1)
    desk.read(a_record("batch_0000000a", tenant="a"))
    desk.read(a_record("batch_0000000b", tenant="b"))
    desk.leased(range(1, 6), batch_id="batch_0000000a")
    desk.leased(range(1, 6), batch_id="batch_0000000b")
    order = ["a"]
    running = ("batch_0000000a.0", 1)
    for _ in range(7):
        desk.stored(running)
        (running,) = desk.started()
        order.append(running[0][13])
    assert order == ["a", "b"] * 4


# What goes wrong.


def test_a_line_that_was_turned_away_waits_longer_each_time(a_desk: ADesk) -> None:
    desk = a_desk()
    desk.leased([1])
    for waits_s in (1, 2, 4):
        desk.put_off((PART, 1))
        desk.pass_seconds(waits_s - 0.5)
        desk.hear(a_worker())
        assert desk.started() == []
        desk.pass_seconds(0.5)
        desk.hear(a_worker())
        assert desk.started() == [(PART, 1)]


def test_a_line_that_fails_too_often_is_failed_with_the_last_reason(a_desk: ADesk) -> None:
    desk = a_desk(attempts_max=2)
    desk.leased([1])
    desk.put_off((PART, 1), failure="workers_died: boom")
    desk.pass_seconds(1)
    desk.hear(a_worker())
    assert desk.only(StartLine).attempt == 1
    desk.put_off((PART, 1), failure="workers_died: boom again")
    fail = desk.only(FailLine)
    assert (fail.line, fail.code, fail.message) == (1, "server_error", "workers_died: boom again")
    desk.stored((PART, 1), is_completed=False)
    assert desk.all(AcknowledgePart)


def test_a_part_that_was_taken_up_too_often_is_not_asked_again(a_desk: ADesk) -> None:
    desk = a_desk(deliveries_max=3)
    desk.leased([1, 2], delivery_count=4)
    assert desk.started() == []
    assert [(fail.line, fail.code) for fail in desk.all(FailLine)] == [
        (1, "given_up"),
        (2, "given_up"),
    ]


@pytest.mark.parametrize(
    "status", [BatchStatus.CANCELLING, BatchStatus.FINALIZING, BatchStatus.CANCELLED]
)
def test_a_batch_that_is_over_is_dropped_with_all_that_runs(
    a_desk: ADesk, status: BatchStatus
) -> None:
    desk = a_desk()
    desk.leased([1, 2])
    desk.read(a_record(status=status))
    assert desk.only(DropPart).part_key == PART
    desk.stored((PART, 1))
    desk.put_off((PART, 2))
    assert not desk.all(StartLine), "what comes late is ignored"
    assert desk.core.intake.running() == 0


def test_a_batch_whose_record_is_deleted_is_dropped(a_desk: ADesk) -> None:
    desk = a_desk()
    desk.leased([1])
    desk.tell(BatchForgotten(batch_id=BATCH, cause_id="t"))
    assert desk.only(DropPart).part_key == PART


def test_a_paused_batch_finishes_what_runs_and_starts_nothing(a_desk: ADesk) -> None:
    desk = a_desk()
    desk.leased(range(1, 41))
    desk.read(a_record(is_paused=True))
    assert not desk.all(DropPart)
    desk.stored((PART, 1))
    assert not desk.all(StartLine)
    desk.read(a_record())
    assert len(desk.all(StartLine)) == 2


def test_a_queue_that_stops_takes_up_nothing_more(a_desk: ADesk) -> None:
    desk = a_desk()
    desk.leased([1])
    desk.tell(QueueStopping(cause_id="t"))
    desk.put_off((PART, 1))
    desk.pass_seconds(60)
    desk.fire("report")
    assert not desk.all(StartLine)
    assert not desk.all(LeaseParts)


# Whole batches.


def test_a_batch_is_looked_at_by_a_clerk_when_no_part_is_left(a_desk: ADesk) -> None:
    desk = a_desk()
    surveyed(desk, parts_left=1)
    assert not desk.all(AskForTask)
    surveyed(desk, parts_left=0, tasks_left=1)
    assert not desk.all(AskForTask), "somebody has asked already"
    surveyed(desk, parts_left=0)
    assert desk.only(AskForTask).batch_id == BATCH


def test_a_batch_is_looked_at_by_a_clerk_when_its_deadline_has_passed(a_desk: ADesk) -> None:
    desk = a_desk(has_batch=False)
    desk.read(a_record(deadline_at_unix_s=UNIX_S + 10))
    desk.pass_seconds(10)
    surveyed(desk, parts_left=5)
    assert desk.only(AskForTask).batch_id == BATCH


@pytest.mark.parametrize(
    "status", [BatchStatus.VALIDATING, BatchStatus.FINALIZING, BatchStatus.CANCELLING]
)
def test_a_task_that_was_lost_is_asked_for_again(a_desk: ADesk, status: BatchStatus) -> None:
    desk = a_desk(has_batch=False)
    desk.read(a_record(status=status))
    desk.fire("survey")
    assert desk.only(SurveyBatch).batch_id == BATCH
    surveyed(desk, parts_left=3)
    assert desk.only(AskForTask).batch_id == BATCH


def test_counts_are_written_when_they_have_changed(a_desk: ADesk) -> None:
    desk = a_desk()
    surveyed(desk, completed=4, failed=1)
    change = desk.only(ChangeBatch).change
    assert isinstance(change, Counted)
    assert (change.completed, change.failed) == (4, 1)
    desk.read(a_record(counts=BatchCounts(total=100, completed=4, failed=1)))
    surveyed(desk, completed=4, failed=1)
    assert not desk.all(ChangeBatch)


def harvest(desk: Any, *, tokens_per_s: int, seconds: int = 10) -> None:
    """Let another queue report that it harvests at this rate."""
    for second in range(seconds):
        desk.pass_seconds(1)
        report = OfflineQueueReport(
            queue_id="queue-2",
            beat=second,
            process_id=2,
            lines_running=5,
            tokens_harvested=tokens_per_s * second,
        )
        desk.tell(QueueReported(report=report, cause_id="t"))
        desk.hear(a_worker())
        desk.fire("report")


def test_a_deadline_that_will_not_be_met_is_warned_of(a_desk: ADesk) -> None:
    desk = a_desk(has_batch=False)
    desk.read(a_record(deadline_at_unix_s=UNIX_S + 100))
    harvest(desk, tokens_per_s=20)
    surveyed(desk)
    warning = desk.only(ChangeBatch).change.warning
    assert "late" in warning, "10,000 tokens at 20 a second take 500 s"
    report = desk.core.due()
    assert report.laxity_s_min is not None
    assert report.laxity_s_min < -300
    assert report.tokens_per_s == pytest.approx(10_000 / 90)


def test_a_batch_whose_model_nobody_serves_says_so_until_somebody_does(a_desk: ADesk) -> None:
    desk = a_desk(has_batch=False)
    record = a_record(alias="small")
    desk.read(record)
    surveyed(desk)
    warning = desk.only(ChangeBatch).change.warning
    assert warning.startswith("no worker serves small")
    desk.read(record.model_copy(update={"warning": warning}))
    surveyed(desk)
    assert not desk.all(ChangeBatch)
    desk.hear(a_worker("w2", alias="small"))
    surveyed(desk)
    assert desk.only(ChangeBatch).change.warning == ""


def test_a_batch_in_a_hurry_goes_first_and_a_share_of_it_above_offline_work(
    a_desk: ADesk,
) -> None:
    desk = a_desk(has_batch=False, urgent_share=0.25)
    harvest(desk, tokens_per_s=20)
    desk.read(a_record("batch_0000000a", deadline_at_unix_s=UNIX_S + 80_000))
    desk.read(a_record("batch_0000000b", deadline_at_unix_s=UNIX_S + 100))
    desk.leased(range(1, 20), batch_id="batch_0000000b")
    starts = desk.all(StartLine)
    assert len(starts) == 8
    assert [start.priority for start in starts] == [0, 0] + [OFFLINE_PRIORITY] * 6


def test_a_report_tells_of_all_work_and_of_this_queue(a_desk: ADesk) -> None:
    desk = a_desk()
    desk.leased(range(1, 41))
    desk.stored((PART, 1))
    desk.fire("report")
    report = desk.only(PublishReport).report
    assert (report.batches_open, report.lines_running, report.lines_completed) == (1, 9, 1)
    assert report.lines_running_max == 9
    assert report.lines_waiting == 91
    assert report.tokens_due == 100 * 20, "the one line that ended took 20"
    assert report.requests_submitted == 10


# Jobs.


def a_job(request_id: str = "j1", *, deadline_s: int = 60) -> LeasedJob:
    line = WaitingLine(line=1, prefix="", prompt_tokens=5, answer_tokens=5)
    key = f"job.{request_id}"
    part = LeasedPart(part_key=key, source_id=key, lines=(line,), delivery_count=1)
    return LeasedJob(
        part=part,
        alias="tiny",
        tenant="",
        deadline_at_unix_ns=(UNIX_S + deadline_s) * NS_PER_S,
    )


def test_a_job_is_run_acknowledged_and_forgotten(a_desk: ADesk) -> None:
    desk = a_desk(has_batch=False)
    desk.tell(JobsLeased(jobs=(a_job(),), cause_id="t"))
    assert desk.started() == [("job.j1", 1)]
    desk.stored(("job.j1", 1))
    assert desk.only(AcknowledgePart).part_key == "job.j1"
    desk.acknowledged("job.j1")
    assert desk.core.intake.sources == {}


def test_what_a_batch_has_left_at_its_deadline_is_told_by_its_clerk_and_not_failed(
    a_desk: ADesk,
) -> None:
    desk = a_desk(workers=0)
    desk.leased([1, 2])
    assert desk.started() == []
    desk.pass_seconds(86_401)
    desk.hear(a_worker())
    assert desk.started() == []
    assert not desk.all(FailLine)


def test_a_job_that_is_too_late_ends_as_expired(a_desk: ADesk) -> None:
    desk = a_desk(has_batch=False)
    desk.tell(JobsLeased(jobs=(a_job(deadline_s=0),), cause_id="t"))
    assert desk.started() == []
    assert desk.only(FailLine).code == "expired"


def test_jobs_are_leased_again_after_there_were_none(a_desk: ADesk) -> None:
    desk = a_desk(has_batch=False)
    desk.fire("report")
    assert not desk.all(LeaseJobs)
    desk.pass_seconds(2)
    desk.fire("report")
    assert desk.only(LeaseJobs).count > 0
