"""A client in the simulated world: the live reader, and a witness of all that it was sent."""

from dataclasses import dataclass, field
from typing import Final, assert_never

from libs.client.reader import StreamReader
from libs.client.reader_events import (
    AnswerReceived,
    BeginAnswer,
    Cancel,
    DeliverTokens,
    EndStream,
    Outcome,
    ReaderCommand,
    ReaderEvent,
    ReaderOptions,
    StreamLeft,
    StreamOpened,
    Submit,
    TokensTaken,
)
from libs.contracts import subjects
from libs.contracts.online import (
    ANSWERS,
    CancelRequest,
    RequestFailed,
    RequestFinished,
    SubmitRequest,
    TokensGenerated,
)
from libs.contracts.wire import encode
from libs.kernel.core import SetTimer, TimerFired, require
from libs.kernel.units import NS_PER_S
from libs.runtime.bus import BusMessage
from libs.sim.broker import SimBroker
from libs.sim.process import SimProcess

PATIENT: Final = ReaderOptions(acceptance_wait_ns=600 * NS_PER_S)
"""A run may go without any worker for longer than a person would wait to be accepted."""


@dataclass(slots=True, kw_only=True)
class Witness:
    """What one client saw, told apart from what its reader made of it."""

    token_ids: list[int] = field(default_factory=list)
    """Tokens that the reader delivered, in order."""
    outcome: Outcome | None = None
    ends: int = 0
    """How often the reader ended; must be one."""
    endings_received: set[str] = field(default_factory=set)
    """Different final messages on the wire; more than one would be two answers."""
    tokens_contradicted: int = 0
    """Tokens on the wire that differ from an earlier one at the same index."""
    token_by_index: dict[int, int] = field(default_factory=dict)


class ClientProcess(SimProcess):
    """Submits one request and reads its answer."""

    def __init__(
        self, network: SimBroker, submission: SubmitRequest, *, alias: str, leaves_after: int | None
    ) -> None:
        super().__init__(network.world, name=f"client-{submission.request_id}")
        self.submission = submission
        self.witness = Witness()
        self.leaves_after = leaves_after
        """Number of tokens after which this client cancels; None stays to the end."""
        self._alias = alias
        self._network = network
        self._inbox = f"_INBOX.{submission.request_id}"
        self._reader = StreamReader(submission.request_id, PATIENT)
        network.subscribe(self, self._inbox, self._on_message)
        self._post(StreamOpened())

    @property
    def is_done(self) -> bool:
        """Whether the answer has ended."""
        return self.witness.ends > 0

    @property
    def submissions(self) -> int:
        """How often the request was submitted."""
        return self._reader.submissions

    def _on_message(self, message: BusMessage) -> None:
        if message.headers.get("Status") == "503":
            return  # nobody listens; the reader repeats by its own timer
        answer = ANSWERS.decode(message.payload)
        self._observe(answer)
        self._post(AnswerReceived(answer=answer))

    def _observe(self, answer: object) -> None:
        witness = self.witness
        if isinstance(answer, TokensGenerated):
            for offset, token_id in enumerate(answer.token_ids):
                index = answer.first_index + offset
                if witness.token_by_index.setdefault(index, token_id) != token_id:
                    witness.tokens_contradicted += 1
        elif isinstance(answer, RequestFinished | RequestFailed):
            witness.endings_received.add(repr(answer))

    def _post(self, event: ReaderEvent) -> None:
        commands = self._reader.handle(event, now_ns=self.world.now_ns)
        self._reader.check_invariants()
        for command in commands:
            self._perform(command)

    def _perform(self, command: ReaderCommand) -> None:
        witness = self.witness
        match command:
            case Submit():
                update = {"tokens_received": command.tokens_received}
                self._publish(
                    subjects.online(self._alias), self.submission.model_copy(update=update)
                )
            case Cancel():
                request_id = self.submission.request_id
                self._publish(subjects.cancel(request_id), CancelRequest(request_id=request_id))
            case BeginAnswer():
                pass
            case DeliverTokens():
                require(command.first_index == len(witness.token_ids), "delivered out of order")
                witness.token_ids.extend(command.token_ids)
                self._post(TokensTaken(next_index=len(witness.token_ids)))
                if self.leaves_after is not None and len(witness.token_ids) >= self.leaves_after:
                    self._post(StreamLeft())
            case EndStream():
                witness.ends += 1
                witness.outcome = command.outcome
                self._network.disconnect(self)
            case SetTimer():
                fired = TimerFired(key=command.key, cause_id=command.cause_id)
                self.set_timer(
                    command.key, after_ns=command.after_ns, action=lambda: self._post(fired)
                )
            case _:
                assert_never(command)

    def _publish(self, subject: str, message: SubmitRequest | CancelRequest) -> None:
        reply_to = self._inbox if isinstance(message, SubmitRequest) else None
        self._network.publish(
            self, BusMessage(subject=subject, payload=encode(message), reply_to=reply_to)
        )
