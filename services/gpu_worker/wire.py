"""The worker's messages as subjects and bytes: what the live shell and the simulator share.

Pure: bytes in, events out; commands in, bytes out.
"""

from libs.contracts import subjects
from libs.contracts.handover import WORKER_SHAPE
from libs.contracts.preemption import NOTICES, Notice
from libs.contracts.reports import REPORTS, WorkerReport
from libs.contracts.sessions import WORKER_CONTROL, AcknowledgeTokens, EndSession, StartSession
from libs.contracts.token_step import pack_step
from libs.contracts.wire import Outgoing, encode
from libs.kernel.errors import ContractViolation
from services.gpu_worker.commands import (
    AnswerMigrator,
    PublishReport,
    SendTokens,
    SendToRouter,
)
from services.gpu_worker.events import (
    AcknowledgeReceived,
    EndReceived,
    NoticeReceived,
    PeerReported,
    ShapeReceived,
    StartReceived,
    WorkerEvent,
)

Sending = SendTokens | SendToRouter | AnswerMigrator | PublishReport
"""The commands that are one message each."""


def outgoing(command: Sending) -> Outgoing:
    """Return the message that carries out the command."""
    match command:
        case SendTokens():
            return Outgoing(
                subject=subjects.router_tokens(command.router_id), payload=pack_step(command.step)
            )
        case SendToRouter():
            return Outgoing(
                subject=subjects.router_control(command.router_id), payload=encode(command.message)
            )
        case AnswerMigrator():
            return Outgoing(
                subject=subjects.migrator_control(command.migrator_id),
                payload=encode(command.message),
            )
        case PublishReport():
            return Outgoing(
                subject=subjects.worker_report(command.report.worker_id),
                payload=encode(command.report),
            )


def event_of(payload: bytes) -> WorkerEvent:
    """Return what a message on `worker_control` means to the worker.

    Raises: ContractViolation for anything that is no message to a worker.
    """
    message = WORKER_CONTROL.decode(payload)
    match message:
        case StartSession():
            return StartReceived(
                message=message, cause_id=f"{message.spec.request_id}#{message.session_epoch}"
            )
        case AcknowledgeTokens():
            return AcknowledgeReceived(message=message, cause_id=message.router_id)
        case EndSession():
            return EndReceived(
                message=message, cause_id=f"{message.request_id}#{message.session_epoch}"
            )


def shape_event_of(payload: bytes) -> WorkerEvent:
    """Return what a message on `worker_shape` means. Raises: ContractViolation."""
    message = WORKER_SHAPE.decode(payload)
    return ShapeReceived(message=message, cause_id=f"{message.handover_id}/{message.op_id}")


def peer_event_of(payload: bytes) -> WorkerEvent:
    """Return what a message on `worker_report` means. Raises: ContractViolation."""
    report = REPORTS.decode(payload)
    if not isinstance(report, WorkerReport):
        raise ContractViolation(f"{type(report).__name__} where workers report")
    return PeerReported(report=report, cause_id=report.worker_id)


def notice_event_of(payload: bytes) -> WorkerEvent:
    """Return what a message on `notice` means. Raises: ContractViolation."""
    return notice_event(NOTICES.decode(payload))


def notice_event(message: Notice) -> WorkerEvent:
    """Return what a notice means, by whichever way it came."""
    return NoticeReceived(message=message, cause_id=f"{message.node_id}/{message.notice_id}")
