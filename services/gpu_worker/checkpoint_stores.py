"""Copies what offline sequences have filled to host memory, and what evicted ones have left."""

from libs.engine.host_tier import ChainLink
from libs.policy.kv_return import flushing_pays
from services.gpu_worker.checkpoint_options import WAITING_LOOKED_AT, CheckpointCounters
from services.gpu_worker.commands import StoreBlocks
from services.gpu_worker.events import BlocksStored
from services.gpu_worker.host_kv import HostKv, Store
from services.gpu_worker.state import WorkerState


class CheckpointStores:
    """The way from device to host. One store of a position is under way at a time, so that a block
    never waits for a parent that may yet fail."""

    def __init__(self, state: WorkerState, counters: CheckpointCounters) -> None:
        self._state = state
        self._options = state.options.checkpoints
        self._counters = counters

    def begin(self, kv: HostKv) -> None:
        """Begin the next store of this position, if there is something to copy and time for it."""
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
            self._counters.blocks_flushed += sum(link.block_hash in slots for link in flushed)
            self._begin_store(kv, [(blocks[h], slot) for h, slot in slots.items()], tuple(slots))

    def ended(self, kv: HostKv, event: BlocksStored) -> None:
        """Let blocks be found in host memory that all ranks have copied."""
        store = self._take(kv)
        kv.tier.commit(store.hashes)
        kv.copy_ended(blocks=len(store.hashes), duration_ns=event.duration_ns)
        self._counters.blocks_stored += len(store.hashes)

    def failed(self, kv: HostKv) -> None:
        """Forget what did not arrive, and try it again."""
        kv.tier.abandon(self._take(kv).hashes)
        for sequence_id in kv.scheduler.sequence_ids:
            kv.uncopied.look_again(sequence_id)

    def _take(self, kv: HostKv) -> Store:
        store, kv.store = kv.store, None
        assert store is not None
        kv.scheduler.release_blocks(store.op_id)
        return store

    def _is_storing_now(self, kv: HostKv) -> bool:
        """Whether running sequences are copied: always, or when their blocks may soon be needed."""
        if self._options.policy == "eager":
            return True
        engine = kv.scheduler.options
        blocks_per_step = -(-engine.step_tokens_max // engine.block_tokens)
        return kv.scheduler.blocks_free < 2 * blocks_per_step

    def _to_flush(self, kv: HostKv, evicted: list[str]) -> list[ChainLink]:
        """Choose what evicted sequences have left uncopied, as far as copying it now pays."""
        chosen: list[ChainLink] = []
        for sequence_id in evicted:
            links = kv.uncopied.of(sequence_id)
            there = len(kv.scheduler.find_blocks([link.block_hash for link in links]))
            if there and kv.pays(flushing_pays, blocks=there):
                chosen += links[: self._options.blocks_per_store_max - len(chosen)]
            else:
                self._counters.blocks_given_up += len(links)
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
        op_id = kv.next_op_id("store")
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
