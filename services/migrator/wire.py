"""The migrator's messages as subjects and bytes: what the live shell and the simulator share.

Pure: bytes in, events out; commands in, bytes out.
"""

from libs.contracts import subjects
from libs.contracts.handover import MIGRATOR_CONTROL
from libs.contracts.placement import PLACEMENTS, Placement
from libs.contracts.reports import REPORTS, MigratorReport, WorkerReport
from libs.contracts.wire import Outgoing, encode
from libs.kernel.errors import ContractViolation
from services.migrator.commands import PublishReport, SendToWorker
from services.migrator.events import (
    MigratorEvent,
    MigratorReported,
    PlacementAnnounced,
    WorkerAnswered,
    WorkerReported,
)

Sending = SendToWorker | PublishReport
"""The commands that are one message each."""


def listening(migrator_id: str, alias: str) -> tuple[str, ...]:
    """Everything a migrator hears, as subject patterns."""
    return (
        subjects.WORKER_REPORTS,
        subjects.MIGRATOR_REPORTS,
        subjects.migrator_control(migrator_id),
        subjects.placement(alias),
    )


def outgoing(command: Sending) -> Outgoing:
    """Return the message that carries out the command."""
    match command:
        case SendToWorker():
            subject = subjects.worker_shape(command.worker_id)
            return Outgoing(subject=subject, payload=encode(command.message))
        case PublishReport():
            subject = subjects.migrator_report(command.report.migrator_id)
            return Outgoing(subject=subject, payload=encode(command.report))


def event_of(*, subject: str, payload: bytes, now_unix_ns: int) -> MigratorEvent | None:
    """Return what a message means to the migrator; None if it is nothing to it.

    Raises: ContractViolation for a malformed message.
    """
    family = subject.removeprefix(f"{subjects.ROOT}.").partition(".")[0]
    match family:
        case "report":
            return _report_event(payload, now_unix_ns=now_unix_ns)
        case "migrator":
            answer = MIGRATOR_CONTROL.decode(payload)
            return WorkerAnswered(answer=answer, cause_id=answer.op_id)
        case "placement":
            placement = PLACEMENTS.decode(payload)
            if not isinstance(placement, Placement):
                return None
            return PlacementAnnounced(
                plan_revision=placement.plan_revision, cause_id=placement.cause_id
            )
        case _:
            raise ContractViolation(f"no message is expected on {subject}")


def _report_event(payload: bytes, *, now_unix_ns: int) -> MigratorEvent | None:
    report = REPORTS.decode(payload)
    match report:
        case WorkerReport():
            return WorkerReported(report=report, cause_id=report.worker_id)
        case MigratorReport():
            return MigratorReported(
                report=report, now_unix_ns=now_unix_ns, cause_id=report.migrator_id
            )
        case _:
            return None
