"""What a queue leases, keeps, lets go of and acknowledges."""

from collections.abc import Callable
from typing import Any

import pytest

from libs.contracts.batches import BatchStatus
from services.offline_queue.commands import (
    AcknowledgePart,
    DropPart,
    KeepPart,
    LeaseParts,
    SurveyBatch,
)
from services.offline_queue.events import PartsLeased
from tests.unit.offline_queue.conftest import UNIX_S, a_record, a_worker

ADesk = Callable[..., Any]
BATCH = "batch_00000001"
PART = f"{BATCH}.0"


def test_parts_are_leased_of_a_batch_in_progress_one_request_at_a_time(a_desk: ADesk) -> None:
    desk = a_desk(has_batch=False)
    desk.read(a_record())
    assert desk.only(LeaseParts).batch_id == BATCH
    desk.hear(a_worker())
    assert not desk.all(LeaseParts), "the first request is under way"


@pytest.mark.parametrize(
    "fields",
    [
        {"status": BatchStatus.VALIDATING},
        {"status": BatchStatus.CANCELLING},
        {"is_paused": True},
        {"deadline_at_unix_s": UNIX_S},
    ],
)
def test_nothing_is_leased_of_a_batch_that_may_not_be_worked_on(
    a_desk: ADesk, fields: dict[str, object]
) -> None:
    desk = a_desk(has_batch=False)
    desk.read(a_record(**fields))
    assert not desk.all(LeaseParts)


def test_a_batch_with_nothing_to_lease_is_asked_again_after_a_while(a_desk: ADesk) -> None:
    desk = a_desk()
    desk.tell(PartsLeased(source_id=BATCH, parts=(), cause_id="t"))
    assert not desk.all(LeaseParts)
    desk.pass_seconds(2)
    desk.fire("report")
    assert desk.all(LeaseParts)


def test_leases_are_renewed_while_they_are_held(a_desk: ADesk) -> None:
    desk = a_desk()
    desk.leased([1])
    desk.fire("keep")
    assert desk.only(KeepPart).part_key == PART


def test_a_lease_that_was_not_renewed_in_time_begins_no_line_and_is_let_go_when_nothing_runs(
    a_desk: ADesk,
) -> None:
    desk = a_desk(lines_running_max=1)
    desk.leased([1, 2])
    desk.pass_seconds(29)
    desk.fire("keep")  # the broker does not hear of it
    desk.pass_seconds(1)
    desk.hear(a_worker())
    desk.fire("keep")
    assert not desk.all(DropPart), "a line runs: it is the same session that another would ask for"
    desk.stored((PART, 1))
    assert desk.started() == []
    desk.fire("keep")
    assert desk.only(DropPart).part_key == PART
    assert PART not in desk.core.intake.parts


def test_a_renewal_counts_from_when_it_was_asked_for(a_desk: ADesk) -> None:
    desk = a_desk(lines_running_max=1)
    desk.leased([1, 2, 3])
    desk.pass_seconds(29)
    desk.keep()
    desk.pass_seconds(29)
    desk.hear(a_worker())
    desk.stored((PART, 1))
    assert desk.started() == [(PART, 2)]
    desk.pass_seconds(1)
    desk.hear(a_worker())
    desk.stored((PART, 2))
    assert desk.started() == []


def test_a_lapsed_part_that_comes_again_goes_on_without_what_others_have_stored(
    a_desk: ADesk,
) -> None:
    desk = a_desk(lines_running_max=1)
    desk.leased([1, 2, 3])
    desk.tell(PartsLeased(source_id=BATCH, parts=(), cause_id="t"))
    desk.pass_seconds(30)
    desk.hear(a_worker())
    desk.stored((PART, 1))
    assert desk.started() == []
    desk.leased([3], delivery_count=2)
    assert desk.started() == [(PART, 3)]
    assert desk.core.counters.parts_leased_again == 1
    desk.stored((PART, 3))
    assert desk.only(AcknowledgePart).part_key == PART


def test_a_lease_that_ran_out_while_its_lines_were_read_begins_none_of_them(a_desk: ADesk) -> None:
    desk = a_desk(has_batch=False)
    desk.read(a_record())
    assert desk.all(LeaseParts)
    desk.pass_seconds(30)
    desk.hear(a_worker())
    desk.leased([1])
    assert desk.started() == []


def test_a_part_whose_lines_are_all_stored_is_acknowledged_once(a_desk: ADesk) -> None:
    desk = a_desk()
    desk.leased([1, 2])
    desk.stored((PART, 1))
    assert not desk.all(AcknowledgePart)
    desk.stored((PART, 2), is_completed=False)
    assert desk.only(AcknowledgePart).part_key == PART
    desk.acknowledged(PART)
    assert PART not in desk.core.intake.parts
    assert desk.only(SurveyBatch).batch_id == BATCH, "it may have been the last one"


def test_an_acknowledgement_that_is_not_known_is_repeated(a_desk: ADesk) -> None:
    desk = a_desk()
    desk.leased([1])
    desk.stored((PART, 1))
    desk.acknowledged(PART, is_done=False)
    assert desk.only(AcknowledgePart).part_key == PART


def test_a_part_with_nothing_left_is_acknowledged_at_once(a_desk: ADesk) -> None:
    desk = a_desk()
    desk.leased([])
    assert desk.only(AcknowledgePart).part_key == PART


def test_a_part_that_comes_again_keeps_the_lines_that_run(a_desk: ADesk) -> None:
    desk = a_desk()
    desk.leased([1, 2])
    desk.leased([1, 2], delivery_count=2)
    assert desk.started() == []
    assert desk.core.intake.running() == 2
