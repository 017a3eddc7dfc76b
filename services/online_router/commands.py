"""Everything a router can want done; the closed union that its shell interprets.

Commands with an `op_id` end in exactly one outcome event that carries it.
"""

from dataclasses import dataclass

from libs.contracts.journal import JournalRecord
from libs.contracts.online import SubmitRequest, ToClient
from libs.contracts.reports import RouterReport
from libs.contracts.sessions import ToWorker
from libs.contracts.wire import Encoding
from libs.kernel.core import Caused, Operation, SetTimer


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply(Caused):
    """Send a message to a client's reply subject; it may be lost, the client asks again."""

    reply_to: str
    encoding: Encoding
    message: ToClient


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokenize(Operation):
    """Render and tokenise the prompt, and try the answer's schema, off the loop
    -> PromptTokenized | PromptRefused."""

    alias: str
    submission: SubmitRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimRequest(Operation):
    """Bind the request id to our journal -> ClaimMade | ClaimHeld | ClaimUnavailable.

    With a revision only if the claim still has it; `is_forced` whatever stands there, which only
    the router that has fenced the former owner may ask. A claim that is ours already is made.
    """

    request_id: str
    journal_id: str
    revision: int | None = None
    is_forced: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AppendJournal(Operation):
    """Append one batch if the journal's last sequence is this -> JournalAppended | ...Failed."""

    journal_id: str
    message_id: str
    expected_sequence: int
    records: tuple[JournalRecord, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadJournalTail(Operation):
    """Read the last message of a journal -> JournalTailRead | JournalUnavailable."""

    journal_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadJournal(Operation):
    """Read a whole journal -> JournalRead | JournalUnavailable."""

    journal_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ListJournals(Operation):
    """List the journals that hold messages -> JournalsListed | JournalUnavailable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PurgeJournal(Caused):
    """Drop the journal's messages before this sequence. May fail: it only saves space."""

    journal_id: str
    before_sequence: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SendToWorker(Caused):
    """Send a control message; nobody listening becomes PeerUnreachable."""

    worker_id: str
    message: ToWorker


@dataclass(frozen=True, slots=True, kw_only=True)
class PingRouter(Caused):
    """Find out whether anybody listens for the router; nobody becomes PeerUnreachable."""

    router_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardSubmission(Caused):
    """Hand a repeated submission to the router that owns it, with the client's reply subject."""

    router_id: str
    alias: str
    submission: SubmitRequest
    reply_to: str
    encoding: Encoding


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishReport(Caused):
    """Publish our heartbeat."""

    report: RouterReport


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
