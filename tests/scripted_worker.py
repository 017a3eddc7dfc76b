"""A worker as a migrator sees it: positions, commands, answers; nothing is computed.

It obeys what libs/contracts/handover.py promises, and keeps a list of what no migrator may ever ask
of it: `violations`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from libs.contracts.handover import (
    ActivateReplica,
    CopyKv,
    DropReplica,
    FormReplica,
    LoadWeights,
    ReleaseSessions,
    ReplicaRoster,
    ResumeReplica,
    ShapeDone,
    ShapeFailed,
    ShapeFailReason,
    StagePosition,
    StopReplica,
    ToMigrator,
    ToShape,
)
from libs.contracts.reports import LinkRate, ReportedPosition, WorkerReport
from libs.kernel.units import NS_PER_MS

LOAD_NS = 300 * NS_PER_MS
FORM_LIMIT_NS = 3_000 * NS_PER_MS
BLOCK_BYTES = 1000


@dataclass(kw_only=True)
class ScriptedPosition:
    roster: ReplicaRoster
    rank: int
    phase: str = "staged"
    is_loaded: bool = False
    is_forming: bool = False
    is_formed: bool = False
    is_broken: bool = False
    is_released: bool = False
    blocks: int = 0
    """Full blocks of its sessions, while it serves."""
    blocks_copied: int = 0

    @property
    def is_lead(self) -> bool:
        return self.rank == (self.roster.stages - 1) * self.roster.shards

    @property
    def is_serving(self) -> bool:
        return self.is_lead and self.phase == "active" and not self.is_broken

    def covers(self) -> Iterator[tuple[int, int]]:
        """The quarters of the model that it holds: shapes up to 2 x 2."""
        stage, shard = divmod(self.rank, self.roster.shards)
        for layers in range(2):
            for heads in range(2):
                is_stage = self.roster.stages == 1 or layers == stage
                if is_stage and (self.roster.shards == 1 or heads == shard):
                    yield layers, heads


@dataclass(kw_only=True)
class ScriptedWorker:
    """One worker process."""

    worker_id: str
    peers: Callable[[], list["ScriptedWorker"]]
    """All living workers, itself included."""
    process_id: int = 1
    grace_ends_at_ns: int | None = None
    was_frozen: bool = False
    may_lose_weights: Callable[[], bool] = lambda: True
    """Whether the last copy may go: a policy reads the disk, or a loss is not yet known."""
    fails: Callable[[ToShape], ShapeFailReason | None] = lambda _: None
    link_rates: tuple[LinkRate, ...] = ()
    prefill_tokens_per_s: int = 0
    sessions_finishing: int = 0
    """Left to end where they are, says every answer to a CopyKv."""
    positions: dict[str, ScriptedPosition] = field(default_factory=dict)
    serving_id: str | None = None
    beat: int = 0
    handover_epoch: int = 0
    plan_revision: int = 0
    answers: dict[str, ToMigrator] = field(default_factory=dict)
    under_way: dict[str, tuple[ToShape, int]] = field(default_factory=dict)
    obeyed: list[ToShape] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)

    @property
    def serving(self) -> ScriptedPosition | None:
        return self.positions.get(self.serving_id or "")

    def report(self, now_ns: int) -> WorkerReport:
        held = self.serving
        self.beat += 1
        return WorkerReport(
            worker_id=self.worker_id,
            beat=self.beat,
            alias="tide",
            process_id=self.process_id,
            context_tokens_max=2048,
            vocabulary_size=256,
            block_tokens=16,
            blocks_total=512,
            blocks_free=512,
            sessions_running=0,
            sessions_waiting=0,
            tokens_waiting=0,
            tokens_generated=0,
            steps=self.beat,
            step_ms_recent=20.0,
            is_planned=True,
            is_serving=held is not None and held.is_serving,
            position=None if held is None else _reported(held),
            peer_address=f"{self.worker_id}:1",
            link_rates=self.link_rates,
            prefill_tokens_per_s=self.prefill_tokens_per_s,
            kv_tokens=0 if held is None else held.blocks * 16,
            grace_left_ms=None
            if self.grace_ends_at_ns is None
            else max(0, self.grace_ends_at_ns - now_ns) // NS_PER_MS,
        )

    def decode(self) -> None:
        """Fill another block, if it serves."""
        held = self.serving
        if held is not None and held.is_serving:
            held.blocks += 1

    def receive(self, message: ToShape, *, now_ns: int) -> list[ToMigrator]:
        """Obey or refuse; what takes time is answered by `tick`."""
        stale = message.handover_epoch < self.handover_epoch
        if stale or message.plan_revision < self.plan_revision:
            return [self._failed(message, ShapeFailReason.STALE)]
        self.handover_epoch = message.handover_epoch
        self.plan_revision = message.plan_revision
        if message.op_id in self.answers:
            return [self.answers[message.op_id]]
        if message.op_id in self.under_way:
            return []
        reason = self.fails(message)
        answer = self._failed(message, reason) if reason else self._obey(message, now_ns)
        if answer is None:
            self.under_way[message.op_id] = (message, now_ns)
            return []
        self.answers[message.op_id] = answer
        return [answer]

    def tick(self, *, now_ns: int) -> list[tuple[ToShape, ToMigrator]]:
        """Finish what takes time."""
        finished = []
        for op_id, (message, begun_at_ns) in list(self.under_way.items()):
            answer = self._finish(message, now_ns - begun_at_ns)
            if answer is not None:
                del self.under_way[op_id]
                self.answers[op_id] = answer
                finished.append((message, answer))
        return finished

    def _obey(self, message: ToShape, now_ns: int) -> ToMigrator | None:
        self.obeyed.append(message)
        match message:
            case StagePosition():
                return self._stage(message)
            case LoadWeights():
                return None
            case FormReplica():
                position = self.positions.get(message.replica_id)
                if position is None:
                    return self._failed(message, ShapeFailReason.UNKNOWN_REPLICA)
                position.is_forming = True
                return None
            case CopyKv():
                return self._copy(message)
            case StopReplica():
                return self._stop(message)
            case ResumeReplica():
                return self._resume(message)
            case ActivateReplica():
                return self._activate(message)
            case ReleaseSessions():
                return self._release(message)
            case DropReplica():
                return self._drop(message)

    def _stage(self, message: StagePosition) -> ToMigrator:
        roster = message.replica
        for replica_id, held in list(self.positions.items()):
            if held.phase == "staged" or replica_id != self.serving_id:
                del self.positions[replica_id]
        if roster.replica_id in self.positions:
            return self._failed(message, ShapeFailReason.WRONG_STATE)
        rank = next(i for i, w in enumerate(roster.workers) if w.worker_id == self.worker_id)
        position = ScriptedPosition(roster=roster, rank=rank)
        self.positions[roster.replica_id] = position
        rendezvous = f"{self.worker_id}:2" if position.is_lead else ""
        return self._done(message, rendezvous=rendezvous, kv_blocks=100 + rank)

    def _finish(self, message: ToShape, elapsed_ns: int) -> ToMigrator | None:
        assert isinstance(message, LoadWeights | FormReplica)
        position = self.positions.get(message.replica_id)
        if position is None:
            return self._failed(message, ShapeFailReason.UNKNOWN_REPLICA)
        if isinstance(message, LoadWeights):
            if elapsed_ns < LOAD_NS:
                return None
            position.is_loaded = True
            return self._done(message, bytes_planned=300, bytes_from_peers=100, bytes_kept=200)
        members = self._members(position)
        if len(members) == len(position.roster.workers) and all(m.is_forming for m in members):
            position.is_formed = True
            return self._done(message, kv_blocks=message.kv_blocks)
        if elapsed_ns > FORM_LIMIT_NS:
            return self._failed(message, ShapeFailReason.PEER_LOST)
        return None

    def _copy(self, message: CopyKv) -> ToMigrator:
        held = self.positions.get(message.source.replica_id)
        if held is None or held.is_broken:
            return self._failed(message, ShapeFailReason.BROKEN)
        moved = held.blocks - held.blocks_copied
        held.blocks_copied = held.blocks
        return self._done(
            message,
            blocks_moved=moved,
            bytes_planned=moved * BLOCK_BYTES,
            bytes_moved=moved * BLOCK_BYTES,
            sessions_finishing=self.sessions_finishing,
        )

    def _stop(self, message: StopReplica) -> ToMigrator:
        held = self.positions.get(message.source.replica_id)
        if held is None:
            return self._failed(message, ShapeFailReason.UNKNOWN_REPLICA)
        if held.is_broken:
            return self._failed(message, ShapeFailReason.BROKEN)
        if held.phase == "staged":
            self.violations.append(f"{self.worker_id}: stop of a staged position")
        held.phase = "stopped"
        moved = held.blocks - held.blocks_copied if message.targets else 0
        held.blocks_copied += moved
        return self._done(
            message,
            sessions=2,
            blocks_moved=moved,
            bytes_moved=moved * BLOCK_BYTES,
            tokens_uncopied=16 * (held.blocks - held.blocks_copied),
        )

    def _resume(self, message: ResumeReplica) -> ToMigrator:
        held = self.positions.get(message.replica_id)
        if held is None:
            return self._failed(message, ShapeFailReason.UNKNOWN_REPLICA)
        if held is not self.serving or held.phase == "staged":
            return self._failed(message, ShapeFailReason.WRONG_STATE)
        held.phase = "active"
        return self._done(message)

    def _activate(self, message: ActivateReplica) -> ToMigrator:
        position = self.positions.get(message.replica_id)
        if position is None:
            return self._failed(message, ShapeFailReason.UNKNOWN_REPLICA)
        if position.phase == "active":
            return self._done(message)
        if position.is_broken:
            return self._failed(message, ShapeFailReason.BROKEN)
        if not (position.is_loaded and position.is_formed):
            self.violations.append(f"{self.worker_id}: activation of what is not loaded and formed")
            return self._failed(message, ShapeFailReason.WRONG_STATE)
        before = self.serving
        if before is not None and before.is_serving:
            self.violations.append(f"{self.worker_id}: activation beside what serves")
            return self._failed(message, ShapeFailReason.WRONG_STATE)
        self._check_sources_stand_still(position)
        if before is not None:
            before.phase = "stopped"
        position.phase = "active"
        self.serving_id = message.replica_id
        return self._done(message)

    def _check_sources_stand_still(self, position: ScriptedPosition) -> None:
        mine = {worker.worker_id for worker in position.roster.workers}
        for peer in self.peers():
            held = peer.serving
            if held is None or not held.is_serving or held.roster == position.roster:
                continue
            if peer.was_frozen:
                continue  # taken for dead; it breaks at its next step, which its members refuse
            if mine & {worker.worker_id for worker in held.roster.workers}:
                name = f"{held.roster.replica_id} on {peer.worker_id}"
                self.violations.append(
                    f"{self.worker_id}: activation of {position.roster.replica_id} while {name} "
                    "serves with workers of it"
                )

    def _release(self, message: ReleaseSessions) -> ToMigrator:
        held = self.positions.get(message.replica_id)
        if held is None:
            return self._failed(message, ShapeFailReason.UNKNOWN_REPLICA)
        if held.phase != "stopped":
            self.violations.append(f"{self.worker_id}: release of what does not stand still")
        held.is_released = True
        return self._done(message, sessions=2)

    def _drop(self, message: DropReplica) -> ToMigrator:
        held = self.positions.get(message.replica_id)
        if held is None:
            return self._failed(message, ShapeFailReason.UNKNOWN_REPLICA)
        if held.is_serving:
            self.violations.append(f"{self.worker_id}: drop of {message.replica_id} that serves")
        is_source = held.is_lead and held.phase == "stopped" and not held.is_broken
        if is_source and not held.is_released:
            self.violations.append(f"{self.worker_id}: drop of {message.replica_id} unreleased")
        before = self._covered()
        del self.positions[message.replica_id]
        if self.serving_id == message.replica_id:
            self.serving_id = None
        is_lost = len(before) == 4 and len(self._covered()) < 4
        if is_lost and held.phase != "staged" and not self.may_lose_weights():
            self.violations.append(f"{self.worker_id}: drop of the last copy of some weights")
        return self._done(message)

    def _covered(self) -> set[tuple[int, int]]:
        held = (p for peer in self.peers() for p in peer.positions.values() if p.is_loaded)
        return {quarter for position in held for quarter in position.covers()}

    def _members(self, position: ScriptedPosition) -> list[ScriptedPosition]:
        held = (peer.positions.get(position.roster.replica_id) for peer in self.peers())
        return [m for m in held if m is not None and m.roster == position.roster]

    def _done(self, message: ToShape, **fields: object) -> ShapeDone:
        return ShapeDone(
            worker_id=self.worker_id,
            handover_id=message.handover_id,
            op_id=message.op_id,
            **fields,
        )

    def _failed(self, message: ToShape, reason: ShapeFailReason) -> ShapeFailed:
        return ShapeFailed(
            worker_id=self.worker_id,
            handover_id=message.handover_id,
            op_id=message.op_id,
            reason=reason,
        )


def _reported(held: ScriptedPosition) -> ReportedPosition:
    stage, shard = divmod(held.rank, held.roster.shards)
    return ReportedPosition(
        replica_id=held.roster.replica_id,
        replica_epoch=held.roster.replica_epoch,
        stages=held.roster.stages,
        shards=held.roster.shards,
        stage=stage,
        shard=shard,
        is_broken=held.is_broken,
    )
