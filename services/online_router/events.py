"""Everything that can happen to a router; the closed union that its core handles."""

from collections.abc import Mapping
from dataclasses import dataclass

from libs.contracts.journal import JournalRecord
from libs.contracts.online import CancelRequest, RejectReason, SubmitRequest
from libs.contracts.reports import RouterReport, WorkerReport
from libs.contracts.sessions import ToRouter
from libs.contracts.token_step import TokenStep
from libs.contracts.wire import Encoding
from libs.kernel.core import Caused, Operation, TimerFired


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterStarted(Caused):
    """The process is connected and ready; comes first and once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmissionReceived(Caused):
    """A client submitted, or repeated, a request, here or by way of another router."""

    submission: SubmitRequest
    alias: str
    reply_to: str
    encoding: Encoding
    received_at_unix_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmissionMalformed(Caused):
    """Bytes on a submission subject that are no SubmitRequest."""

    reply_to: str
    encoding: Encoding
    message: str
    request_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptTokenized(Operation):
    """Outcome of Tokenize."""

    prompt_token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptRefused(Operation):
    """Outcome of Tokenize: the prompt cannot be rendered or tokenised, or no answer be held to the
    schema."""

    reason: RejectReason
    message: str
    parameter: str | None = None
    """The field at fault, where it is not the prompt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimMade(Operation):
    """Outcome of ClaimRequest: the request id belongs to the journal that asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimHeld(Operation):
    """Outcome of ClaimRequest: another journal holds the request id, at this revision."""

    journal_id: str
    revision: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimUnavailable(Operation):
    """Outcome of ClaimRequest: the broker did not answer; the claim may or may not stand."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalAppended(Operation):
    """Outcome of AppendJournal: the batch is durable at this sequence."""

    sequence: int


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalAppendFailed(Operation):
    """Outcome of AppendJournal: conflict or time-out, and reading the tail decides; or the stream
    is full, and nothing was stored."""

    is_full: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalTailRead(Operation):
    """Outcome of ReadJournalTail: the last message of the journal; None if it holds none."""

    sequence: int
    message_id: str | None
    records: tuple[JournalRecord, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalsListed(Operation):
    """Outcome of ListJournals: how many messages each journal holds."""

    messages_by_journal_id: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalRead(Operation):
    """Outcome of ReadJournal: all records in order, and the sequence of the last message."""

    records: tuple[JournalRecord, ...]
    sequence: int
    read_at_unix_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalUnavailable(Operation):
    """Outcome of ReadJournalTail, ReadJournal or ListJournals: the broker did not answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerReported(Caused):
    """A worker's heartbeat."""

    report: WorkerReport


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterReported(Caused):
    """A router's heartbeat; our own is the echo that lets silence count."""

    report: RouterReport


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerUnreachable(Caused):
    """The broker found nobody listening on the subject of this worker or router."""

    peer_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TokensReceived(Caused):
    """One engine step's tokens from one worker."""

    step: TokenStep


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerAnswered(Caused):
    """A worker's answer about one session."""

    answer: ToRouter


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelReceived(Caused):
    """A client no longer wants its request."""

    cancellation: CancelRequest


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
