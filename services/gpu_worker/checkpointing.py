"""Keeps copies of offline KV in host memory, so that evicting a sequence costs nothing.

    running   block full --StoreBlocks, pinned--> held in host memory, under its prefix hash
    evicted   its blocks are free at once; what was not copied and is still there is copied now, if
              that is cheaper than to compute it again
    waiting   held back --LoadBlocks, reserved--> committed, let go --> found as a cached prefix

A block is stored only after the step that filled it was accounted, and found in host memory only
after every rank has it. Everything goes by prefix hash: two sequences that share a block store it
once, and a copy that comes late, twice or not at all costs computing and never a wrong token.
Source: ConServe, sections on incremental checkpointing and prefetch, and the connector by the same
author in vLLM; departs from them in choosing by measured cost and in chains without holes.
"""

from dataclasses import dataclass

from libs.engine.host_tier import ChainLink
from libs.kernel.core import require
from libs.policy.kv_return import ReturnTest, flushing_pays, loading_pays
from services.gpu_worker.checkpoint_options import CheckpointOptions
from services.gpu_worker.commands import LoadBlocks, StoreBlocks
from services.gpu_worker.events import BlocksLoaded, BlocksStored, HostCopyFailed, StepFinished
from services.gpu_worker.host_kv import HostKv, Load, Store, host_kv_of
from services.gpu_worker.state import WorkerState

WAITING_LOOKED_AT = 16
"""So many waiting sequences, the next ones in the order of service, have their KV brought or kept
for them."""


@dataclass(slots=True, kw_only=True)
class CheckpointCounters:
    """What happened since the process started, for metrics."""

    blocks_stored: int = 0
    blocks_loaded: int = 0
    blocks_flushed: int = 0
    """Of those stored: of sequences that had been evicted before they were copied."""
    blocks_given_up: int = 0
    """Of evicted sequences, not copied and cheaper to compute again."""
    blocks_corrupt: int = 0
    """Found changed in host memory, and computed again."""
    copies_failed: int = 0


class Checkpointing:
    """The worker's core as far as host memory is concerned. `advance` after every event."""

    def __init__(self, state: WorkerState) -> None:
        self._state = state
        self._options: CheckpointOptions = state.options.checkpoints
        self._kv: HostKv | None = None
        self._ended: list[HostKv] = []
        """Of positions that serve no more, while copies of them are under way."""
        self._copies = 0
        self.counters = CheckpointCounters()

    @property
    def current(self) -> HostKv | None:
        """The checkpoints of the position that serves, to look at."""
        return self._kv

    def advance(self) -> None:
        """Begin what can be begun between two steps."""
        if not self._options.is_on or self._state.step is not None:
            return
        self._follow_position()
        kv = self._kv
        if kv is None or not kv.position.is_serving:
            return
        self._release_arrived(kv)
        self._load(kv)
        self._store(kv)

    def step_finished(self, event: StepFinished) -> None:
        """Note how long a step took."""
        if self._kv is not None:
            self._kv.pace.step_ended(event.duration_ns)

    def stored(self, event: BlocksStored) -> None:
        """Let blocks be found in host memory that all ranks have copied."""
        kv, store = self._take_store(event.op_id)
        kv.tier.commit(store.hashes)
        self._copy_ended(kv, blocks=len(store.hashes), duration_ns=event.duration_ns)
        self.counters.blocks_stored += len(store.hashes)

    def loaded(self, event: BlocksLoaded) -> None:
        """Let the sequence find its blocks, up to the first that was not what it had been."""
        kv, load = self._take_load(event.op_id)
        corrupt = {load.hashes_by_slot[slot] for slot in event.slots_corrupt}
        good = [h for h in load.hashes_by_slot.values() if h not in corrupt]
        kv.tier.drop(h for h in load.hashes_by_slot.values() if h in corrupt)
        kv.scheduler.commit_imports(load.op_id, good)
        kv.scheduler.drop_reserved(load.op_id)
        kv.scheduler.let_go(load.sequence_id)
        kv.arrived[load.sequence_id] = load.op_id
        self._copy_ended(kv, blocks=len(load.hashes_by_slot), duration_ns=event.duration_ns)
        self.counters.blocks_loaded += len(good)
        self.counters.blocks_corrupt += len(corrupt)

    def failed(self, event: HostCopyFailed) -> None:
        """Forget what did not arrive; nothing of the copy goes on."""
        self.counters.copies_failed += 1
        if any(kv.store and kv.store.op_id == event.op_id for kv in self._all()):
            kv, store = self._take_store(event.op_id)
            kv.tier.abandon(store.hashes)
            for sequence_id in kv.scheduler.sequence_ids:
                kv.uncopied.look_again(sequence_id)
            return
        kv, load = self._take_load(event.op_id)
        kv.scheduler.release_blocks(load.op_id)
        kv.scheduler.let_go(load.sequence_id)
        # What could not be read is worth nothing, and would be tried for ever.
        kv.tier.drop(load.hashes_by_slot.values())

    def check_invariants(self) -> None:
        """Raise InvariantViolation if a sequence is held back for nothing, or the tier is amiss."""
        for kv in self._all():
            kv.tier.check_invariants()
            ids = [load.sequence_id for load in kv.loads.values()]
            require(len(ids) == len(set(ids)), "a sequence is loaded twice at a time")
            require(not set(ids) & kv.arrived.keys(), "a sequence is loaded before it has run")
        for kv in self._ended:
            require(bool(kv.store or kv.loads), "checkpoints outlive their position for nothing")

    # ------------------------------------------------------------------ device to host

    def _store(self, kv: HostKv) -> None:
        offline = [s.sequence_id for s in self._state.sessions_at(kv.position) if s.is_offline]
        kv.uncopied.note(offline)
        if kv.store is not None:
            return
        waiting = set(kv.scheduler.waiting_offline_ids())
        flushed = self._to_flush(kv, [each for each in offline if each in waiting])
        chosen = list(flushed)
        if self._is_storing_now(kv):
            chosen += self._to_keep(kv, [each for each in reversed(offline) if each not in waiting])
        if not chosen:
            return
        blocks = dict(kv.scheduler.find_blocks([link.block_hash for link in chosen]))
        slots = kv.tier.reserve(
            [link for link in chosen if link.block_hash in blocks], wanted=self._wanted(kv)
        )
        if len(slots) < len(chosen):
            for sequence_id in offline:
                kv.uncopied.look_again(sequence_id)
        if slots:
            self.counters.blocks_flushed += sum(link.block_hash in slots for link in flushed)
            self._begin_store(kv, [(blocks[h], slot) for h, slot in slots.items()], tuple(slots))

    def _is_storing_now(self, kv: HostKv) -> bool:
        """Whether running sequences are copied: always, or when their blocks may soon be needed."""
        if self._options.policy == "eager":
            return True
        engine = kv.scheduler.options
        blocks_per_step = -(-engine.step_tokens_max // engine.block_tokens)
        return kv.scheduler.load().blocks_free < 2 * blocks_per_step

    def _to_flush(self, kv: HostKv, evicted: list[str]) -> list[ChainLink]:
        """Choose what evicted sequences have left uncopied, as far as copying it now pays."""
        chosen: list[ChainLink] = []
        for sequence_id in evicted:
            links = kv.uncopied.of(sequence_id)
            there = len(kv.scheduler.find_blocks([link.block_hash for link in links]))
            if there and self._pays(kv, flushing_pays, blocks=there, blocks_before=0):
                chosen += links[: self._options.blocks_per_store_max - len(chosen)]
            else:
                self.counters.blocks_given_up += len(links)
                kv.uncopied.give_up(sequence_id)
        return chosen

    def _to_keep(self, kv: HostKv, running: list[str]) -> list[ChainLink]:
        """Choose what to copy of running sequences, those first that are evicted first."""
        allowed = self._blocks_allowed(kv)
        chosen: list[ChainLink] = []
        for sequence_id in running:
            if len(chosen) >= allowed:
                break
            chosen += kv.uncopied.of(sequence_id)[: allowed - len(chosen)]
        return chosen

    def _blocks_allowed(self, kv: HostKv) -> int:
        bytes_ = kv.position.host_room.block_bytes
        item_ns = kv.link.duration_ns(bytes_) - kv.link.copy_ns
        allowed = kv.pace.items_allowed(item_ns=item_ns, copy_ns=kv.link.copy_ns)
        return min(allowed, self._options.blocks_per_store_max)

    def _begin_store(
        self, kv: HostKv, pairs: list[tuple[int, int]], hashes: tuple[int, ...]
    ) -> None:
        op_id = self._next_op_id(kv, "store")
        kv.scheduler.pin_blocks(op_id, [block for block, _ in pairs])
        kv.store = Store(op_id=op_id, hashes=hashes)
        self._state.emit(
            StoreBlocks(
                op_id=op_id,
                replica_id=kv.position.replica_id,
                pairs=tuple(pairs),
                cause_id=self._state.cause_id,
            )
        )

    def _wanted(self, kv: HostKv) -> set[int]:
        """Return what the next waiting sequences want back; for membership only."""
        if kv.tier.slots_free >= self._options.blocks_per_store_max:
            return set()
        next_ids = kv.scheduler.waiting_offline_ids()[:WAITING_LOOKED_AT]
        return {h for sequence_id in next_ids for h in kv.scheduler.wanted_hashes(sequence_id)}

    # ------------------------------------------------------------------ host to device

    def _load(self, kv: HostKv) -> None:
        """Bring back what the next waiting sequences want, if they could run with it."""
        load = kv.scheduler.load()
        if load.sequences_running >= kv.scheduler.options.sequences_max:
            return
        blocks_kept = load.sequences_running + load.blocks_reserved_for_online
        taken_care_of = {each.sequence_id for each in kv.loads.values()} | kv.arrived.keys()
        for sequence_id in kv.scheduler.waiting_offline_ids()[:WAITING_LOOKED_AT]:
            if sequence_id in taken_care_of:
                continue
            wanted = kv.scheduler.wanted_hashes(sequence_id)
            prefix = kv.tier.held_prefix(wanted[: self._options.blocks_per_load_max])
            if len(wanted) + blocks_kept >= kv.scheduler.load().blocks_free:
                self._let_go_in_turn(kv, sequence_id)
                return  # what comes later in the order of service does not go first
            if not prefix or not self._pays(kv, loading_pays, blocks=len(prefix), blocks_before=0):
                self._let_go_in_turn(kv, sequence_id)
            elif len(kv.loads) < self._options.loads_max:
                self._begin_load(kv, sequence_id, prefix)
            elif kv.scheduler.hold_back(sequence_id):
                # Else it would go past those before it, and compute what lies in host memory.
                kv.in_turn.add(sequence_id)

    def _let_go_in_turn(self, kv: HostKv, sequence_id: str) -> None:
        if sequence_id in kv.in_turn:
            kv.in_turn.discard(sequence_id)
            kv.scheduler.let_go(sequence_id)

    def _begin_load(
        self, kv: HostKv, sequence_id: str, prefix: tuple[tuple[int, int], ...]
    ) -> None:
        op_id = self._next_op_id(kv, "load")
        blocks = kv.scheduler.reserve_imports(op_id, [block_hash for block_hash, _ in prefix])
        slots = {block_hash: slot for block_hash, slot in prefix if block_hash in blocks}
        self._let_go_in_turn(kv, sequence_id)
        if not slots or not kv.scheduler.hold_back(sequence_id):
            kv.scheduler.release_blocks(op_id)
            return
        kv.tier.pin(slots)
        kv.loads[op_id] = Load(
            op_id=op_id,
            sequence_id=sequence_id,
            hashes_by_slot={slot: block_hash for block_hash, slot in slots.items()},
        )
        self._state.emit(
            LoadBlocks(
                op_id=op_id,
                replica_id=kv.position.replica_id,
                pairs=tuple((slot, blocks[block_hash]) for block_hash, slot in slots.items()),
                cause_id=self._state.cause_id,
            )
        )

    def _release_arrived(self, kv: HostKv) -> None:
        """Keep what was brought until its sequence runs, is gone, or has lost some of it again."""
        waiting = set(kv.scheduler.waiting_offline_ids())
        for sequence_id, ticket in list(kv.arrived.items()):
            if sequence_id not in waiting or kv.tier.held_prefix(
                kv.scheduler.wanted_hashes(sequence_id)
            ):
                kv.scheduler.release_blocks(ticket)
                del kv.arrived[sequence_id]

    # ------------------------------------------------------------------ costs and bookkeeping

    def _pays(self, kv: HostKv, test: ReturnTest, *, blocks: int, blocks_before: int) -> bool:
        """Whether blocks behind others come back cheaper by copies than by computing."""
        size = kv.scheduler.options.block_tokens
        return test(
            kv.link,
            kv.scheduler.timing.model,
            bytes_=blocks * kv.position.host_room.block_bytes,
            tokens=blocks * size,
            tokens_before=blocks_before * size,
        )

    def _copy_ended(self, kv: HostKv, *, blocks: int, duration_ns: int) -> None:
        kv.pace.copy_ended(duration_ns)
        bytes_ = blocks * kv.position.host_room.block_bytes
        kv.link = kv.link.after(bytes_=bytes_, duration_ns=duration_ns)

    def _follow_position(self) -> None:
        """Begin anew when another position serves; one that is gone takes its host memory along."""
        position = self._state.positions.serving
        if self._kv is not None and self._kv.position is position:
            return
        if self._kv is not None and (self._kv.store or self._kv.loads):
            self._ended.append(self._kv)
        self._kv = None
        if (
            position is not None
            and position.scheduler is not None
            and position.host_room.blocks > 0
        ):
            self._kv = host_kv_of(position, self._options)

    def _all(self) -> list[HostKv]:
        return [*([] if self._kv is None else [self._kv]), *self._ended]

    def _take_store(self, op_id: str) -> tuple[HostKv, Store]:
        for kv in self._all():
            store = kv.store
            if store is not None and store.op_id == op_id:
                kv.store = None
                kv.scheduler.release_blocks(op_id)
                self._forget_if_over(kv)
                return kv, store
        raise AssertionError(f"{op_id} is not under way")

    def _take_load(self, op_id: str) -> tuple[HostKv, Load]:
        for kv in self._all():
            load = kv.loads.pop(op_id, None)
            if load is not None:
                kv.tier.unpin(load.hashes_by_slot.values())
                self._forget_if_over(kv)
                return kv, load
        raise AssertionError(f"{op_id} is not under way")

    def _forget_if_over(self, kv: HostKv) -> None:
        if kv in self._ended and not (kv.store or kv.loads):
            self._ended.remove(kv)

    def _next_op_id(self, kv: HostKv, kind: str) -> str:
        self._copies += 1
        return f"{kv.position.replica_id}.{kind}-{self._copies}"
