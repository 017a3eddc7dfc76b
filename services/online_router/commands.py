"""Everything a router can want done; the closed union that its shell interprets.

Commands with an `op_id` end in exactly one outcome event that carries it.
"""

from dataclasses import dataclass

from libs.contracts.journal import JournalRecord
from libs.contracts.online import SubmitRequest, ToClient
from libs.contracts.reports import RouterReport
from libs.contracts.sessions import ToWorker
from libs.contracts.wire import Encoding
from libs.kernel.core import SetTimer


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """Send a message to a client's reply subject; it may be lost, the client asks again."""

    reply_to: str
    encoding: Encoding
    message: ToClient
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokenize:
    """Render and tokenise the prompt, and try the answer's schema, off the loop
    -> PromptTokenized | PromptRefused."""

    op_id: str
    alias: str
    submission: SubmitRequest
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimRequest:
    """Bind the request id to our journal -> ClaimMade | ClaimHeld | ClaimUnavailable.

    With a revision only if the claim still has it; `is_forced` whatever stands there, which only
    the router that has fenced the former owner may ask. A claim that is ours already is made.
    """

    op_id: str
    request_id: str
    journal_id: str
    revision: int | None = None
    is_forced: bool = False
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AppendJournal:
    """Append one batch if the journal's last sequence is this -> JournalAppended | ...Failed."""

    op_id: str
    journal_id: str
    message_id: str
    expected_sequence: int
    records: tuple[JournalRecord, ...]
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadJournalTail:
    """Read the last message of a journal -> JournalTailRead | JournalUnavailable."""

    op_id: str
    journal_id: str
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadJournal:
    """Read a whole journal -> JournalRead | JournalUnavailable."""

    op_id: str
    journal_id: str
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ListJournals:
    """List the journals that hold messages -> JournalsListed | JournalUnavailable."""

    op_id: str
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PurgeJournal:
    """Drop the journal's messages before this sequence. May fail: it only saves space."""

    journal_id: str
    before_sequence: int
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SendToWorker:
    """Send a control message; nobody listening becomes PeerUnreachable."""

    worker_id: str
    message: ToWorker
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PingRouter:
    """Find out whether anybody listens for the router; nobody becomes PeerUnreachable."""

    router_id: str
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardSubmission:
    """Hand a repeated submission to the router that owns it, with the client's reply subject."""

    router_id: str
    alias: str
    submission: SubmitRequest
    reply_to: str
    encoding: Encoding
    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishReport:
    """Publish our heartbeat."""

    report: RouterReport
    cause_id: str


RouterCommand = (
    Reply
    | Tokenize
    | ClaimRequest
    | AppendJournal
    | ReadJournalTail
    | ReadJournal
    | ListJournals
    | PurgeJournal
    | SendToWorker
    | PingRouter
    | ForwardSubmission
    | PublishReport
    | SetTimer
)
