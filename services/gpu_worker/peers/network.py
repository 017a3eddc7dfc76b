"""A worker's links to its peers: the one object through which the rest of the worker uses them.

It listens for peers, opens replicas, and has one part for each kind of traffic: `open_replica` for
plans, `kv_source`, `kv_rank` and `kv_target` for KV, `weights`. Nothing waits without a time limit,
except an accepted connection for its next message.
"""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from libs.contracts.handover import ReplicaRoster
from libs.contracts.peers import (
    STEP_LINK,
    LoadFromHost,
    OpenSteps,
    StepsRefused,
    StoreToHost,
)
from libs.contracts.transfers import TRANSFER_REQUESTS, IntroducePeer
from libs.contracts.wire import encode
from libs.engine.steps import StepPlan
from libs.kernel.core import present, require
from libs.kernel.errors import ContractViolation
from libs.runtime.clock import Clock
from libs.transfer.layout import TensorSlice
from libs.transfer.peer_connections import LinkOptions, PeerConnections
from libs.transfer.ticket import TransferSummary
from libs.transfer.transport import Connection, Listener, Transport
from services.gpu_worker.peers.answering import Answering
from services.gpu_worker.peers.inbox import Inbox
from services.gpu_worker.peers.kv_plan import KvGeometry
from services.gpu_worker.peers.kv_rank import KvRankSender
from services.gpu_worker.peers.kv_source import KvSource
from services.gpu_worker.peers.kv_target import KvTarget
from services.gpu_worker.peers.open_replica import OpenReplica
from services.gpu_worker.peers.ports import (
    EngineAccess,
    KvCopySummary,
    PeerHost,
    PeerOptions,
    WeightReader,
    WeightWriter,
)
from services.gpu_worker.peers.questions import Purpose, Refusing
from services.gpu_worker.peers.replica_book import ReplicaBook
from services.gpu_worker.peers.transfer_sender import TransferSender
from services.gpu_worker.peers.weights import WeightFetcher, WeightSender

KV_PURPOSES: Final = (Purpose.COPY, Purpose.SEND, Purpose.STORE, Purpose.TRANSFER)


class PeerNetwork:
    """All traffic of one worker with its peers. To be used on the event loop alone."""

    def __init__(
        self,
        *,
        worker_id: str,
        transport: Transport,
        host: PeerHost,
        engine: EngineAccess,
        geometry: KvGeometry,
        clock: Clock,
        options: PeerOptions | None = None,
    ) -> None:
        self._worker_id = worker_id
        self._transport = transport
        self._host = host
        self._engine = engine
        self._clock = clock
        self._options = options or PeerOptions()
        self._listener: Listener | None = None
        self._replicas = ReplicaBook()
        self._threads = ThreadPoolExecutor(self._options.threads, thread_name_prefix="peers")
        self._connections = PeerConnections(
            worker_id, transport, options=LinkOptions(connect_ns=self._options.connect_ns)
        )
        self._inbox = Inbox(executor=self._threads)
        self._sender = TransferSender(
            connections=self._connections, executor=self._threads, options=self._options
        )
        self._kv_target = KvTarget(
            worker_id=worker_id,
            host=host,
            engine=engine,
            geometry=geometry,
            replicas=self._replicas,
            inbox=self._inbox,
        )
        self._kv_rank = KvRankSender(
            worker_id=worker_id,
            engine=engine,
            geometry=geometry,
            sender=self._sender,
            store_here=self._kv_target.store_here,
        )
        self._kv_source = KvSource(
            worker_id=worker_id,
            geometry=geometry,
            connections=self._connections,
            own_rank=self._kv_rank,
            clock=clock,
            options=self._options,
        )
        self._weight_fetcher = WeightFetcher(
            worker_id=worker_id,
            connections=self._connections,
            inbox=self._inbox,
            clock=clock,
            options=self._options,
        )
        self._weight_sender = WeightSender(worker_id=worker_id, sender=self._sender)
        self._answering = Answering(
            replicas=self._replicas,
            kv_target=self._kv_target,
            kv_rank=self._kv_rank,
            weights=self._weight_sender,
            options=self._options,
        )

    @property
    def address(self) -> str:
        """Where peers reach this worker. Raises: InvariantViolation before `start`."""
        return present(self._listener, "the peer network was not started").address

    @property
    def link_rates(self) -> Mapping[str, int]:
        """Measured bytes per second to peers, by worker id, the latest measured last."""
        return self._sender.measured

    async def start(self) -> str:
        """Listen; return the address for reports. Raises: Unavailable if that is not possible."""
        self._listener = await self._transport.listen(self._serve)
        return self._listener.address

    async def open_replica(self, roster: ReplicaRoster, *, rank: int) -> None:
        """Take part in this replica, as this rank, under this epoch; the lead links to all members.

        The lead tries until they have opened it, too, or `opening_ns` has passed; what is linked
        stays so, and repeating this links what is missing. Another epoch of the same replica is
        closed first.
        Raises: Unavailable if a member is not reached in time.
        """
        own = roster.workers[rank].worker_id
        require(own == self._worker_id, f"rank {rank} of {roster.replica_id} is {own}")
        replica = self._replicas.same_as(roster)
        if replica is None:
            await self.close_replica(roster.replica_id)
            replica = OpenReplica(
                roster,
                worker_id=self._worker_id,
                transport=self._transport,
                host=self._host,
                engine=self._engine,
                clock=self._clock,
                options=self._options,
            )
            self._replicas.add(replica)
        if replica.is_lead:
            await replica.connect()

    async def close_replica(self, replica_id: str) -> None:
        """End the replica's links and all copies into it; an unknown one is closed already.

        When this returns nothing is being written to its memory, and the worker has heard the last
        of it.
        """
        replica = self._replicas.remove(replica_id)
        if replica is not None:
            await replica.close()
            await self._kv_target.end_all(replica)

    async def send_plan(self, replica_id: str, plan: StepPlan) -> None:
        """As the lead, send a plan to every member after all before it.

        Raises: Unavailable if the replica is not open or lacks a member: it can compute no more.
        """
        await self._replicas.get(replica_id).send_plan(plan)

    async def ask_to_yield(self, replica_id: str, step_id: int) -> None:
        """As the lead, ask every member to end a step early, if it is not over there.

        Raises: Unavailable if the replica is not open or lacks a member.
        """
        await self._replicas.get(replica_id).ask_to_yield(step_id)

    async def copy_host(
        self,
        replica_id: str,
        question: StoreToHost | LoadFromHost,
        pairs: Sequence[tuple[int, int]],
    ) -> tuple[int, ...]:
        """As the lead, let every member copy between its KV and its host memory; return the slots
        that any found changed.

        Raises: Unavailable if one is lost or could not; none of them copies any more.
        """
        return await self._replicas.get(replica_id).copy_host(question, pairs)

    async def report_failure(self, replica_id: str, reason: str) -> None:
        """As a member, tell the lead that this rank cannot go on; it hears `peer_lost`."""
        await self._replicas.get(replica_id).fail(reason)

    def serve_weights(self, store: WeightReader | None) -> None:
        """Let peers fetch from this store from now on; None: they are refused."""
        self._weight_sender.serve(store)

    async def fetch_weights(
        self,
        *,
        source_address: str,
        replica_epoch: int,
        slices: Sequence[TensorSlice],
        store: WeightWriter,
    ) -> TransferSummary:
        """Bring slices from the peer at this address into the store; return when all are there.

        Goes on after a cut with what is missing, as long as something arrives; if it is cancelled,
        nothing more is stored. Whole rows arrive or nothing of them.
        Raises: Unavailable if the peer is lost, silent, or does not hold them all.
        """
        return await self._weight_fetcher.fetch(
            source_address=source_address,
            own_address=self.address,
            replica_epoch=replica_epoch,
            slices=slices,
            store=store,
        )

    async def copy_kv(
        self,
        *,
        source: ReplicaRoster,
        target: ReplicaRoster,
        ticket_id: str,
        blocks: Sequence[tuple[int, int]],
        deadline_at_ns: int | None = None,
    ) -> KvCopySummary:
        """As the lead of the source, copy blocks to the target: pairs of hash and block.

        They must be given prefix first, at most BLOCKS_PER_COPY_MAX, and must not change until
        this returns; the deadline is on the worker's clock. Whatever goes wrong is said in the
        summary: what was committed by then can be used, the rest was never there. `ticket_id` must
        be new. Only ids of workers that are in both rosters copy in memory.
        """
        return await self._kv_source.copy(
            source=source,
            target=target,
            ticket_id=ticket_id,
            blocks=blocks,
            deadline_at_ns=deadline_at_ns,
        )

    def connect_ahead(self, addresses: Iterable[str]) -> None:
        """Have links ready to peers that will take part in a copy of KV; in the background."""
        for address in addresses:
            for purpose in KV_PURPOSES:
                self._connections.connect_ahead(address, purpose=purpose)

    def round_trips_ns(self, replica_id: str) -> Mapping[str, int]:
        """As the lead, return the latest round trip to each member, by worker id."""
        return self._replicas.get(replica_id).round_trips_ns

    async def stop(self) -> None:
        """Close every replica and link, and wait for what is being stored. Repeating it is safe."""
        for replica in self._replicas.all():
            await self.close_replica(replica.roster.replica_id)
        if self._listener is not None:
            await self._listener.close()
        await self._answering.stop()
        await self._connections.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _serve(self, connection: Connection) -> None:
        """Serve what a peer connects for."""
        introduction = await connection.receive(timeout_ns=self._options.answer_ns)
        match TRANSFER_REQUESTS.decode(introduction.header):
            case IntroducePeer(peer_id=peer_id, purpose=Purpose.STEPS):
                await self._serve_steps(connection, peer_id=peer_id)
            case IntroducePeer(purpose=Purpose.TRANSFER):
                await self._inbox.serve(connection)
            case IntroducePeer(peer_id=peer_id):
                await self._answering.serve(connection, peer_id=peer_id)
            case other:
                raise ContractViolation(f"{type(other).__name__} instead of an introduction")

    async def _serve_steps(self, connection: Connection, *, peer_id: str) -> None:
        message = await connection.receive(timeout_ns=self._options.answer_ns)
        opening = STEP_LINK.decode(message.header)
        if not isinstance(opening, OpenSteps):
            raise ContractViolation(f"{type(opening).__name__} instead of OpenSteps")
        try:
            replica = self._replicas.find(opening.replica_id, replica_epoch=opening.replica_epoch)
        except Refusing as refusal:
            answer = StepsRefused(reason=refusal.reason, message=refusal.message)
            await connection.send(encode(answer), [], timeout_ns=self._options.answer_ns)
            return
        if replica.lead.worker_id != peer_id or replica.is_lead:
            raise ContractViolation(f"{peer_id} does not lead {opening.replica_id}")
        await replica.serve_lead(connection)
