"""One replica as this worker has it open: its roster, its step links, the copies it lets in.

The lead connects to every member before the first plan; a member waits for its lead. A peer that is
lost is reported to the worker once and never comes back: what follows is another replica epoch.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Iterable, Sequence

import structlog

from libs.contracts.handover import PlacedWorker, ReplicaRoster
from libs.contracts.peers import LoadFromHost, OpenSteps, PeerRefusal, StoreToHost
from libs.contracts.transfers import IntroducePeer
from libs.contracts.wire import encode
from libs.engine.steps import StepPlan
from libs.kernel.core import require
from libs.kernel.errors import ContractViolation, Unavailable
from libs.kernel.units import NS_PER_MS, seconds
from libs.runtime.clock import Clock
from libs.transfer.transport import Connection, PeerUnreachable, Transport
from services.gpu_worker.peers.plan_codec import STEP_PLANS
from services.gpu_worker.peers.ports import EngineAccess, PeerHost, PeerOptions
from services.gpu_worker.peers.questions import Purpose, RefusedByPeer
from services.gpu_worker.peers.step_links import LinkToLead, LinkToMember
from services.gpu_worker.peers.store_gate import StoreGate

OPEN_AGAIN_NS = 50 * NS_PER_MS
"""Between two attempts of a lead to reach a member that is not ready."""

_log = structlog.get_logger(__name__)


class OpenReplica:
    """A replica of which this worker is a rank."""

    def __init__(
        self,
        roster: ReplicaRoster,
        *,
        worker_id: str,
        transport: Transport,
        host: PeerHost,
        engine: EngineAccess,
        clock: Clock,
        options: PeerOptions,
    ) -> None:
        require(roster.is_whole and roster.lead is not None, f"{roster.replica_id} has gaps")
        self.roster = roster
        self.gate = StoreGate(tickets_max=options.tickets_max)
        self._worker_id = worker_id
        self._transport = transport
        self._host = host
        self._engine = engine
        self._clock = clock
        self._options = options
        self._to_members: dict[str, LinkToMember] = {}
        self._to_lead: LinkToLead | None = None
        self._lost: dict[str, str] = {}
        """Why, by worker id."""
        self._is_closed = False

    @property
    def lead(self) -> PlacedWorker:
        """The rank that sends the plans."""
        lead = self.roster.lead
        assert lead is not None, "checked when it was opened"
        return lead

    @property
    def is_lead(self) -> bool:
        """Whether this worker is the lead."""
        return self.lead.worker_id == self._worker_id

    @property
    def members(self) -> tuple[PlacedWorker, ...]:
        """The ranks that are not the lead."""
        lead_id = self.lead.worker_id
        return tuple(worker for worker in self.roster.workers if worker.worker_id != lead_id)

    @property
    def is_linked(self) -> bool:
        """Whether the lead has a link to every member and has lost none."""
        return len(self._to_members) == len(self.members) and not self._lost

    @property
    def round_trips_ns(self) -> dict[str, int]:
        """Latest round trip to each member that has answered."""
        times = {member: link.round_trip_ns for member, link in self._to_members.items()}
        return {member: time for member, time in times.items() if time is not None}

    async def connect(self) -> None:
        """As the lead, link to every member that was not linked yet.

        Raises: Unavailable if one cannot be reached, or does not open the replica, in time, or if
        one was lost: then only another epoch helps.
        """
        missing = [each for each in self.members if each.worker_id not in self._to_members]
        await _all(self._connect_in_time(member) for member in missing)
        self._require_links()

    async def send_plan(self, plan: StepPlan) -> None:
        """Send a plan to every member. Raises: Unavailable if one is lost or not linked."""
        self._require_links()
        packed = STEP_PLANS.pack(plan)
        await _all(link.send_plan(packed) for link in self._to_members.values())

    async def ask_to_yield(self, step_id: int) -> None:
        """As the lead, ask every member to end a step early. Raises: Unavailable."""
        self._require_links()
        await _all(link.ask_to_yield(step_id) for link in self._to_members.values())

    async def copy_host(
        self, question: StoreToHost | LoadFromHost, pairs: Sequence[tuple[int, int]]
    ) -> tuple[int, ...]:
        """As the lead, let every member copy to or from host memory, and return the slots that any
        found changed. Raises: Unavailable if one is lost or could not; none copies any more."""
        self._require_links()
        links = self._to_members.values()
        corrupt: set[int] = set()

        async def copy(link: LinkToMember) -> None:
            corrupt.update(await link.copy_host(question, pairs))

        await _all(copy(link) for link in links)
        return tuple(sorted(corrupt))

    async def open_ticket(self, ticket_id: str) -> None:
        """As the lead, let KV of this copy be stored on every rank. Raises: Unavailable."""
        self._require_links()
        if not self.gate.open(ticket_id):
            raise Unavailable("too many copies at a time", retry_after_ns=OPEN_AGAIN_NS)
        await _all(link.open_ticket(ticket_id) for link in self._to_members.values())

    async def close_ticket(self, ticket_id: str) -> None:
        """As the lead, return when no rank that lives stores anything of this copy."""
        links = (link.close_ticket(ticket_id) for link in self._to_members.values())
        # A member that does not answer is lost, and with it all that reads its memory.
        with contextlib.suppress(Unavailable):
            await _all((self.gate.close(ticket_id), *links))

    async def serve_lead(self, connection: Connection) -> None:
        """As a member, serve the lead's link until it ends; it replaces the one before."""
        if self._to_lead is not None:
            self._to_lead.close()
        link = self._to_lead = LinkToLead(
            connection,
            gate=self.gate,
            options=self._options,
            member=self,
        )
        try:
            await link.serve(worker_id=self._worker_id)
        except (Unavailable, ContractViolation) as error:
            if link is self._to_lead:
                self._peer_lost(self.lead.worker_id, str(error))
            raise

    async def fail(self, reason: str) -> None:
        """As a member, tell the lead that this rank cannot go on."""
        if self._to_lead is not None:
            await self._to_lead.fail(reason)

    async def close(self) -> None:
        """End all links; return when nothing is being stored to this replica's memory."""
        self._is_closed = True
        for link in self._to_members.values():
            link.close()
        if self._to_lead is not None:
            self._to_lead.close()
        await self.gate.close_all()

    async def _connect_in_time(self, member: PlacedWorker) -> None:
        try:
            async with asyncio.timeout(seconds(self._options.opening_ns)):
                await self._connect_when_ready(member)
        except TimeoutError as error:
            raise PeerUnreachable(
                f"{member.worker_id} did not open {self.roster.replica_id} in time"
            ) from error

    async def _connect_when_ready(self, member: PlacedWorker) -> None:
        """Link to a member that may still be on its way to open the replica."""
        while not self._is_closed:
            try:
                await self._link_to(member)
                return
            except RefusedByPeer as error:
                if error.reason is not PeerRefusal.UNKNOWN_REPLICA:
                    raise
            except Unavailable as error:
                _log.info("member_not_reached", member=member.worker_id, reason=str(error))
            await asyncio.sleep(seconds(OPEN_AGAIN_NS))

    async def _link_to(self, member: PlacedWorker) -> None:
        limit_ns = self._options.connect_ns
        connection = await self._transport.connect(member.peer_address, timeout_ns=limit_ns)
        introduction = IntroducePeer(peer_id=self._worker_id, purpose=Purpose.STEPS.value)
        await connection.send(encode(introduction), [], timeout_ns=limit_ns)
        link = LinkToMember(
            connection,
            clock=self._clock,
            options=self._options,
            lost=lambda reason: self._peer_lost(member.worker_id, reason),
        )
        opening = OpenSteps(
            replica_id=self.roster.replica_id,
            replica_epoch=self.roster.replica_epoch,
            worker_id=self._worker_id,
        )
        try:
            await link.open(opening)
        except BaseException:
            link.close()
            raise
        if self._is_closed:
            link.close()
        else:
            self._to_members[member.worker_id] = link

    def plan_received(self, plan: StepPlan) -> None:
        """See MemberOfReplica."""
        self._host.plan_received(
            replica_id=self.roster.replica_id,
            replica_epoch=self.roster.replica_epoch,
            plan=plan,
        )

    def yield_asked(self, step_id: int) -> None:
        """See MemberOfReplica."""
        self._engine.request_yield(replica_id=self.roster.replica_id, step_id=step_id)

    async def store_to_host(self, pairs: Sequence[tuple[int, int]]) -> None:
        """See MemberOfReplica."""
        await self._engine.store_to_host(replica_id=self.roster.replica_id, pairs=pairs)

    async def load_from_host(self, pairs: Sequence[tuple[int, int]]) -> tuple[int, ...]:
        """See MemberOfReplica."""
        return await self._engine.load_from_host(replica_id=self.roster.replica_id, pairs=pairs)

    def _peer_lost(self, worker_id: str, reason: str) -> None:
        if self._is_closed or worker_id in self._lost:
            return
        self._lost[worker_id] = reason
        self.gate.shut()
        _log.warning(
            "peer_lost", replica_id=self.roster.replica_id, worker_id=worker_id, reason=reason
        )
        self._host.peer_lost(
            replica_id=self.roster.replica_id,
            replica_epoch=self.roster.replica_epoch,
            worker_id=worker_id,
            reason=reason,
        )

    def _require_links(self) -> None:
        """Raise: Unavailable unless every member can be told."""
        if not self.is_linked:
            lost = "; ".join(f"{worker}: {reason}" for worker, reason in self._lost.items())
            raise Unavailable(
                f"{self.roster.replica_id} lacks members: {lost or 'not linked yet'}",
                retry_after_ns=OPEN_AGAIN_NS,
            )


async def _all(calls: Iterable[Awaitable[None]]) -> None:
    """Await all to their ends; then raise what the first that failed has raised."""
    awaited = list(calls)
    if len(awaited) == 1:
        # Most replicas have one member, and its plan need not wait for a task to be scheduled.
        await awaited[0]
        return
    results = await asyncio.gather(*awaited, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
