"""Answers the questions of peers, one at a time on each link."""

import asyncio
from typing import assert_never

import structlog

from libs.contracts.peers import (
    BLOCKS_PER_BATCH_MAX,
    PEER_QUESTIONS,
    CommitKv,
    EndKv,
    FetchWeights,
    OfferKv,
    PeerAnswer,
    PeerQuestion,
    PeerRefusal,
    PeerRefused,
    SendKv,
    StoreKv,
)
from libs.contracts.wire import encode
from libs.kernel.errors import Unavailable
from libs.transfer.transport import Connection
from services.gpu_worker.peers.bodies import unpack_pairs, unpack_slices
from services.gpu_worker.peers.kv_rank import KvRankSender
from services.gpu_worker.peers.kv_target import KvCopy, KvTarget
from services.gpu_worker.peers.ports import PeerOptions
from services.gpu_worker.peers.questions import Refusing
from services.gpu_worker.peers.replica_book import ReplicaBook
from services.gpu_worker.peers.weights import WeightSender

_log = structlog.get_logger(__name__)


class Answering:
    """The answering side of every link but those for steps and transfers."""

    def __init__(
        self,
        *,
        replicas: ReplicaBook,
        kv_target: KvTarget,
        kv_rank: KvRankSender,
        weights: WeightSender,
        options: PeerOptions,
    ) -> None:
        self._replicas = replicas
        self._kv_target = kv_target
        self._kv_rank = kv_rank
        self._weights = weights
        self._options = options
        self._endings: set[asyncio.Task[None]] = set()

    async def serve(self, connection: Connection, *, peer_id: str) -> None:
        """Answer until the link ends, and with it the copy that it carried.

        Raises: ConnectionLost at its end; ContractViolation if the peer asks nonsense.
        """
        link = _Link(self, connection, peer_id=peer_id)
        try:
            await link.serve()
        finally:
            if link.copy is not None:
                # On its own: this task is being cancelled if the listener closes.
                ending = asyncio.create_task(self._kv_target.end(link.copy))
                self._endings.add(ending)
                ending.add_done_callback(self._endings.discard)

    async def stop(self) -> None:
        """Wait until the copies of links that have ended are ended."""
        await asyncio.gather(*self._endings)

    async def _answer(
        self, link: "_Link", question: PeerQuestion, body: memoryview
    ) -> tuple[PeerAnswer, bytes]:
        match question:
            case OfferKv():
                if link.copy is not None:
                    await self._kv_target.end(link.copy)
                link.copy, answer, wanted = await self._kv_target.offer(question, body)
                return answer, wanted
            case CommitKv():
                return await self._kv_target.commit(link.copy, question, body), b""
            case EndKv():
                return await self._kv_target.finish(link.copy, question), b""
            case SendKv():
                blocks = unpack_pairs(body, pairs_max=BLOCKS_PER_BATCH_MAX)
                self._replicas.find(
                    question.source_replica_id, replica_epoch=question.source_replica_epoch
                )
                return await self._kv_rank.send(question, blocks), b""
            case StoreKv():
                return self._kv_target.store(question, body), b""
            case FetchWeights():
                slices = unpack_slices(body)
                return await self._weights.send(question, slices, peer_id=link.peer_id), b""
            case _:
                assert_never(question)

    async def answer_or_refuse(
        self, link: "_Link", question: PeerQuestion, body: memoryview
    ) -> tuple[PeerAnswer, bytes]:
        """Answer; what the world does not allow is a refusal."""
        try:
            return await self._answer(link, question, body)
        except Refusing as refusal:
            return PeerRefused(reason=refusal.reason, message=refusal.message[:1024]), b""
        except Unavailable as error:
            _log.warning("peer_refused", question=question.type, reason=str(error))
            return PeerRefused(reason=PeerRefusal.PEER_LOST, message=str(error)[:1024]), b""

    @property
    def answer_ns(self) -> int:
        """Longest wait for a peer to take an answer."""
        return self._options.answer_ns


class _Link:
    """One link of one peer, and the copy of KV that it carries."""

    def __init__(self, answering: Answering, connection: Connection, *, peer_id: str) -> None:
        self.peer_id = peer_id
        self.copy: KvCopy | None = None
        self._answering = answering
        self._connection = connection

    async def serve(self) -> None:
        while True:
            message = await self._connection.receive()
            question = PEER_QUESTIONS.decode(message.header)
            answer, body = await self._answering.answer_or_refuse(self, question, message.body)
            bodies = [body] if body else []
            await self._connection.send(
                encode(answer), bodies, timeout_ns=self._answering.answer_ns
            )
