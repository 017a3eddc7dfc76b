"""Questions to a peer, one at a time on a link that is lent for it, and what a refusal is."""

from collections.abc import Sequence
from enum import StrEnum
from typing import TypeVar

from libs.contracts.peers import PEER_ANSWERS, PeerQuestion, PeerRefusal, PeerRefused
from libs.contracts.wire import Message, encode
from libs.kernel.errors import ContractViolation, Unavailable
from libs.kernel.units import NS_PER_MS
from libs.transfer.transport import Buffer, Connection

ASK_AGAIN_NS = 100 * NS_PER_MS
AnswerT = TypeVar("AnswerT", bound=Message)


class Purpose(StrEnum):
    """What a connection is for; the first thing that is said on it.

    A worker has one connection to each peer for each purpose, except for steps, where every
    replica has its own; so what waits for something else has another purpose than that.
    """

    STEPS = "steps"
    COPY = "copy"
    """From a source's lead to a target's lead, for as long as a copy of KV lasts."""
    SEND = "send"
    """From a source's lead to its ranks."""
    STORE = "store"
    """From a rank of the source to a rank of the target."""
    WEIGHTS = "weights"
    """From a loading worker to a holder."""
    TRANSFER = "transfer"
    """Carries what the questions announce."""


class RefusedByPeer(Unavailable):
    """The peer answered that it does not do what was asked."""

    def __init__(self, *, reason: PeerRefusal, message: str, peer_address: str) -> None:
        detail = f" ({message})" if message else ""
        super().__init__(f"{peer_address}: {reason}{detail}", retry_after_ns=ASK_AGAIN_NS)
        self.reason = reason


class Refusing(Unavailable):
    """This worker does not do what a peer asks; the answer to it is PeerRefused."""

    def __init__(self, reason: PeerRefusal, message: str = "") -> None:
        super().__init__(f"{reason}: {message}", retry_after_ns=ASK_AGAIN_NS)
        self.reason = reason
        self.message = message


async def ask(
    link: Connection,
    question: PeerQuestion,
    answer_type: type[AnswerT],
    *,
    body: Buffer = b"",
    timeout_ns: int,
) -> tuple[AnswerT, memoryview]:
    """Ask and return the answer with its body; whatever fails closes the link, but for a refusal.

    `timeout_ns` bounds the sending and the wait for the answer, each.
    Raises: RefusedByPeer; ConnectionLost, PeerSilent; ContractViolation for any other answer.
    """
    try:
        await link.send(encode(question), _bodies(body), timeout_ns=timeout_ns)
        message = await link.receive(timeout_ns=timeout_ns)
        answer = PEER_ANSWERS.decode(message.header)
        if not isinstance(answer, answer_type | PeerRefused):
            raise ContractViolation(
                f"{type(answer).__name__} in answer to {type(question).__name__}"
            )
    except BaseException:
        # An answer that comes later would be taken for that to the next question.
        link.close()
        raise
    if isinstance(answer, PeerRefused):
        raise RefusedByPeer(
            reason=answer.reason, message=answer.message, peer_address=link.peer_address
        )
    return answer, message.body


def _bodies(body: Buffer) -> Sequence[Buffer]:
    return [body] if body else []
