"""Messages of the bus as events, and orders as messages."""

import pytest

from libs.contracts import subjects
from libs.contracts.handover import WORKER_SHAPE, ResumeReplica, ShapeDone
from libs.contracts.placement import CapacityWanted, Placement, Policy
from libs.contracts.reports import MigratorReport, PlannerReport
from libs.contracts.wire import Message, encode
from libs.kernel.errors import ContractViolation
from services.migrator.commands import PublishReport, SendToWorker
from services.migrator.events import (
    MigratorEvent,
    MigratorReported,
    PlacementAnnounced,
    WorkerAnswered,
)
from services.migrator.wire import event_of, listening, outgoing

REPORT = MigratorReport(migrator_id="migrator-1", beat=3, process_id=7, alias="tide")
DONE = ShapeDone(worker_id="worker-1", handover_id="handover-1", op_id="op-1")
PLACEMENT = Placement(plan_revision=4, alias="tide", policy=Policy.TIDESERVE, cause_id="notice-1")


def heard(subject: str, message: Message) -> MigratorEvent | None:
    return event_of(subject=subject, payload=encode(message), now_unix_ns=5)


def test_each_message_is_the_event_that_it_means() -> None:
    subject = subjects.migrator_report("migrator-1")
    assert heard(subject, REPORT) == MigratorReported(
        report=REPORT, now_unix_ns=5, cause_id="migrator-1"
    )
    subject = subjects.migrator_control("migrator-1")
    assert heard(subject, DONE) == WorkerAnswered(answer=DONE, cause_id="op-1")
    subject = subjects.placement("tide")
    assert heard(subject, PLACEMENT) == PlacementAnnounced(plan_revision=4, cause_id="notice-1")


def test_what_is_meant_for_others_is_passed_over() -> None:
    planner = PlannerReport(planner_id="planner-1", beat=0, process_id=1, alias="tide")
    assert heard(subjects.planner_report("planner-1"), planner) is None
    wanted = CapacityWanted(alias="tide", plan_revision=1, spot_nodes=1, on_demand_nodes=0)
    assert heard(subjects.placement("tide"), wanted) is None


@pytest.mark.parametrize(
    "subject", [subjects.migrator_control("migrator-1"), "tide.v1.worker.shape.worker-1"]
)
def test_bytes_that_mean_nothing_are_refused(subject: str) -> None:
    with pytest.raises(ContractViolation):
        event_of(subject=subject, payload=b"\x00", now_unix_ns=5)


def test_an_order_goes_to_its_worker_and_a_report_to_everybody() -> None:
    order = ResumeReplica(
        handover_id="handover-1",
        handover_epoch=1,
        migrator_id="migrator-1",
        op_id="op-1",
        plan_revision=1,
        replica_id="replica-1",
    )
    out = outgoing(SendToWorker(worker_id="worker-1", message=order, cause_id="c"))
    assert out.subject == subjects.worker_shape("worker-1")
    assert WORKER_SHAPE.decode(out.payload) == order
    out = outgoing(PublishReport(report=REPORT, cause_id="c"))
    assert out.subject == subjects.migrator_report("migrator-1")


def test_a_migrator_listens_to_all_workers_and_only_to_its_own_answers() -> None:
    patterns = listening("migrator-1", "tide")
    assert subjects.WORKER_REPORTS in patterns
    assert subjects.migrator_control("migrator-1") in patterns
    assert not any(pattern.startswith("tide.v1.migrator.control.*") for pattern in patterns)
