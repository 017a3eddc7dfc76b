"""The router's messages as subjects and bytes: what the live shell and the simulator share.

Pure: bytes in, events out; commands in, bytes out. The world behind it differs, this does not.
"""

from dataclasses import dataclass
from typing import Final

from libs.contracts import subjects
from libs.contracts.online import CANCELLATIONS, SUBMISSIONS
from libs.contracts.reports import REPORTS, RouterReport, WorkerReport
from libs.contracts.sessions import ROUTER_CONTROL
from libs.contracts.token_step import unpack_step
from libs.contracts.wire import Encoding, Outgoing, encode, encoding_of
from libs.kernel.errors import ContractViolation
from services.online_router.commands import (
    ForwardSubmission,
    PingRouter,
    PublishReport,
    Reply,
    SendToWorker,
)
from services.online_router.events import (
    CancelReceived,
    PeerUnreachable,
    RouterEvent,
    RouterReported,
    SubmissionMalformed,
    SubmissionReceived,
    TokensReceived,
    WorkerAnswered,
    WorkerReported,
)

Sending = Reply | SendToWorker | PingRouter | ForwardSubmission | PublishReport
"""The commands that are one message each."""

_ONLINE: Final = subjects.ONLINE_ALL.removesuffix("*")
_CANCEL: Final = subjects.CANCEL_ALL.removesuffix("*")
_REPORTS: Final = f"{subjects.ROOT}.report."
_ROUTER: Final = f"{subjects.ROOT}.router."


@dataclass(frozen=True, slots=True, kw_only=True)
class Listening:
    """One subject pattern to subscribe to."""

    pattern: str
    queue_group: str | None = None


def listening(router_id: str) -> tuple[Listening, ...]:
    """Everything a router hears."""
    return (
        Listening(pattern=subjects.WORKER_REPORTS),
        Listening(pattern=subjects.ROUTER_REPORTS),
        Listening(pattern=subjects.router_tokens(router_id)),
        Listening(pattern=subjects.router_control(router_id)),
        Listening(pattern=subjects.router_ping(router_id)),
        Listening(pattern=subjects.router_unreachable_all(router_id)),
        Listening(pattern=subjects.router_submissions_all(router_id)),
        Listening(pattern=subjects.CANCEL_ALL),
        Listening(pattern=subjects.ONLINE_ALL, queue_group=subjects.ROUTER_QUEUE_GROUP),
    )


def outgoing(command: Sending, *, router_id: str) -> Outgoing:
    """Return the message that carries out the command."""
    match command:
        case Reply():
            payload = encode(command.message, encoding=command.encoding)
            return Outgoing(subject=command.reply_to, payload=payload)
        case SendToWorker():
            return Outgoing(
                subject=subjects.worker_control(command.worker_id),
                payload=encode(command.message),
                reply_to=subjects.router_unreachable(router_id, command.worker_id),
            )
        case PingRouter():
            return Outgoing(
                subject=subjects.router_ping(command.router_id),
                payload=b"",
                reply_to=subjects.router_unreachable(router_id, command.router_id),
            )
        case ForwardSubmission():
            return Outgoing(
                subject=subjects.router_submissions(command.router_id, command.alias),
                payload=encode(command.submission, encoding=command.encoding),
                reply_to=command.reply_to,
            )
        case PublishReport():
            return Outgoing(
                subject=subjects.router_report(router_id), payload=encode(command.report)
            )


def event_of(
    *, subject: str, payload: bytes, reply_to: str | None, now_unix_ns: int
) -> RouterEvent | None:
    """Return what a message means to the router; None if it is nothing to a router.

    A malformed submission is an event, because its client gets an answer.
    Raises: ContractViolation for any other malformed message.
    """
    if subject.startswith((_ONLINE, f"{_ROUTER}submissions.")):
        return _submission_event(
            subject=subject, payload=payload, reply_to=reply_to or "", now_unix_ns=now_unix_ns
        )
    if subject.startswith(_CANCEL):
        cancellation = CANCELLATIONS.decode(payload)
        return CancelReceived(cancellation=cancellation, cause_id=cancellation.request_id)
    if subject.startswith(_REPORTS):
        return _report_event(payload)
    kind = subject.removeprefix(_ROUTER).partition(".")[0]
    match kind:
        case "tokens":
            step = unpack_step(payload)
            return TokensReceived(step=step, cause_id=f"{step.worker_id}/{step.step_id}")
        case "control":
            answer = ROUTER_CONTROL.decode(payload)
            return WorkerAnswered(answer=answer, cause_id=answer.request_id)
        case "unreachable":
            peer_id = subjects.last_token(subject)
            return PeerUnreachable(peer_id=peer_id, cause_id=peer_id)
        case "ping":
            return None  # that it was delivered is the answer
        case _:
            raise ContractViolation(f"no message is expected on {subject}")


def _submission_event(
    *, subject: str, payload: bytes, reply_to: str, now_unix_ns: int
) -> SubmissionReceived | SubmissionMalformed:
    encoding: Encoding = encoding_of(payload)
    try:
        submission = SUBMISSIONS.decode(payload)
    except ContractViolation as violation:
        return SubmissionMalformed(
            reply_to=reply_to, encoding=encoding, message=str(violation), cause_id=subject
        )
    return SubmissionReceived(
        submission=submission,
        alias=subjects.last_token(subject),
        reply_to=reply_to,
        encoding=encoding,
        received_at_unix_ns=now_unix_ns,
        cause_id=submission.request_id,
    )


def _report_event(payload: bytes) -> RouterEvent | None:
    report = REPORTS.decode(payload)
    match report:
        case WorkerReport():
            return WorkerReported(report=report, cause_id=report.worker_id)
        case RouterReport():
            return RouterReported(report=report, cause_id=report.router_id)
        case _:
            return None
