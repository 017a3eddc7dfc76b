"""The planner's messages as subjects and bytes: what the live shell and the simulator share.

Pure: bytes in, events out; commands in, bytes out.
"""

from typing import Final, assert_never

from libs.contracts import subjects
from libs.contracts.placement import PIN_REQUESTS
from libs.contracts.preemption import NOTICES, NoticeWithdrawn, PreemptionNotice
from libs.contracts.reports import (
    REPORTS,
    OfflineQueueReport,
    PlannerReport,
    RouterReport,
    WorkerReport,
)
from libs.contracts.wire import Outgoing, encode, encoding_of
from services.planner.commands import AnnouncePlacement, AnswerPin, PublishCapacity, PublishReport
from services.planner.events import (
    NoticeReceived,
    PinRequested,
    PlannerEvent,
    PlannerReported,
    QueueReported,
    RouterReported,
    WithdrawalReceived,
    WorkerReported,
)

Sending = AnnouncePlacement | PublishCapacity | PublishReport | AnswerPin
"""The commands that are one message each."""

_NOTICES: Final = subjects.NOTICES_ALL.removesuffix("*")


def listening(alias: str) -> tuple[str, ...]:
    """Every subject pattern that a planner hears."""
    return (
        subjects.WORKER_REPORTS,
        subjects.ROUTER_REPORTS,
        subjects.OFFLINE_QUEUE_REPORTS,
        subjects.PLANNER_REPORTS,
        subjects.NOTICES_ALL,
        subjects.planner_control(alias),
    )


def outgoing(command: Sending, *, planner_id: str) -> Outgoing:
    """Return the message that carries out the command."""
    match command:
        case AnnouncePlacement():
            subject = subjects.placement(command.placement.alias)
            return Outgoing(subject=subject, payload=encode(command.placement))
        case PublishCapacity():
            subject = subjects.capacity_wanted(command.wanted.alias)
            return Outgoing(subject=subject, payload=encode(command.wanted))
        case PublishReport():
            subject = subjects.planner_report(planner_id)
            return Outgoing(subject=subject, payload=encode(command.report))
        case AnswerPin():
            payload = encode(command.answer, encoding=command.encoding)
            return Outgoing(subject=command.reply_to, payload=payload)
        case _:
            assert_never(command)


def event_of(
    *, subject: str, payload: bytes, reply_to: str | None, now_unix_ns: int
) -> PlannerEvent | None:
    """Return what a message means to the planner; None if it is nothing to it.

    Raises: ContractViolation for a malformed message.
    """
    if subject.startswith(_NOTICES):
        return _notice_event(payload)
    if subject.startswith(f"{subjects.ROOT}.planner."):
        request = PIN_REQUESTS.decode(payload)
        return PinRequested(
            request=request,
            reply_to=reply_to or "",
            encoding=encoding_of(payload),
            cause_id="operator",
        )
    report = REPORTS.decode(payload)
    match report:
        case WorkerReport():
            return WorkerReported(report=report, cause_id=report.worker_id)
        case RouterReport():
            return RouterReported(report=report, cause_id=report.router_id)
        case OfflineQueueReport():
            return QueueReported(report=report, cause_id=report.queue_id)
        case PlannerReport():
            return PlannerReported(
                report=report, received_at_unix_ns=now_unix_ns, cause_id=report.planner_id
            )
        case _:
            return None


def _notice_event(payload: bytes) -> NoticeReceived | WithdrawalReceived:
    notice = NOTICES.decode(payload)
    match notice:
        case PreemptionNotice():
            return NoticeReceived(notice=notice, cause_id=notice.notice_id)
        case NoticeWithdrawn():
            return WithdrawalReceived(withdrawal=notice, cause_id=notice.notice_id)
        case _:
            assert_never(notice)
