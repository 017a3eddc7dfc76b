"""Everything that can happen to a router; the closed union that its core handles."""

from collections.abc import Mapping
from dataclasses import dataclass

from libs.contracts.journal import JournalRecord
from libs.contracts.online import CancelRequest, RejectReason, SubmitRequest
from libs.contracts.reports import RouterReport, WorkerReport
from libs.contracts.sessions import ToRouter
from libs.contracts.token_step import TokenStep
from libs.contracts.wire import Encoding
from libs.kernel.core import TimerFired


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterStarted:
    """The process is connected and ready; comes first and once."""

    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmissionReceived:
    """A client submitted, or repeated, a request, here or by way of another router."""

    submission: SubmitRequest
    alias: str
    reply_to: str
    encoding: Encoding
    received_at_unix_ns: int
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmissionMalformed:
    """Bytes on a submission subject that are no SubmitRequest."""

    reply_to: str
    encoding: Encoding
    message: str
    request_id: str = ""
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptTokenized:
    """Outcome of Tokenize."""

    op_id: str
    prompt_token_ids: tuple[int, ...]
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptRefused:
    """Outcome of Tokenize: the prompt cannot be rendered or tokenised, or no answer be held to the
    schema."""

    op_id: str
    reason: RejectReason
    message: str
    cause_id: str
    parameter: str | None = None
    """The field at fault, where it is not the prompt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimMade:
    """Outcome of ClaimRequest: the request id belongs to the journal that asked."""

    op_id: str
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimHeld:
    """Outcome of ClaimRequest: another journal holds the request id, at this revision."""

    op_id: str
    journal_id: str
    revision: int
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimUnavailable:
    """Outcome of ClaimRequest: the broker did not answer; the claim may or may not stand."""

    op_id: str
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalAppended:
    """Outcome of AppendJournal: the batch is durable at this sequence."""

    op_id: str
    sequence: int
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalAppendFailed:
    """Outcome of AppendJournal: conflict or time-out, and reading the tail decides; or the stream
    is full, and nothing was stored."""

    op_id: str
    cause_id: str
    is_full: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalTailRead:
    """Outcome of ReadJournalTail: the last message of the journal; None if it holds none."""

    op_id: str
    sequence: int
    message_id: str | None
    records: tuple[JournalRecord, ...]
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalsListed:
    """Outcome of ListJournals: how many messages each journal holds."""

    op_id: str
    messages_by_journal_id: Mapping[str, int]
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalRead:
    """Outcome of ReadJournal: all records in order, and the sequence of the last message."""

    op_id: str
    records: tuple[JournalRecord, ...]
    sequence: int
    read_at_unix_ns: int
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalUnavailable:
    """Outcome of ReadJournalTail, ReadJournal or ListJournals: the broker did not answer."""

    op_id: str
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerReported:
    """A worker's heartbeat."""

    report: WorkerReport
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterReported:
    """A router's heartbeat; our own is the echo that lets silence count."""

    report: RouterReport
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerUnreachable:
    """The broker found nobody listening on the subject of this worker or router."""

    peer_id: str
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TokensReceived:
    """One engine step's tokens from one worker."""

    step: TokenStep
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerAnswered:
    """A worker's answer about one session."""

    answer: ToRouter
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelReceived:
    """A client no longer wants its request."""

    cancellation: CancelRequest
    cause_id: str


RouterEvent = (
    RouterStarted
    | SubmissionReceived
    | SubmissionMalformed
    | PromptTokenized
    | PromptRefused
    | ClaimMade
    | ClaimHeld
    | ClaimUnavailable
    | JournalAppended
    | JournalAppendFailed
    | JournalTailRead
    | JournalsListed
    | JournalRead
    | JournalUnavailable
    | WorkerReported
    | RouterReported
    | PeerUnreachable
    | TokensReceived
    | WorkerAnswered
    | CancelReceived
    | TimerFired
)
