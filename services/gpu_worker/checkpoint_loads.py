"""Brings the KV of evicted offline sequences back from host memory before they run again."""

from libs.policy.kv_return import loading_pays
from services.gpu_worker.checkpoint_options import WAITING_LOOKED_AT, CheckpointCounters
from services.gpu_worker.commands import LoadBlocks
from services.gpu_worker.events import BlocksLoaded
from services.gpu_worker.host_kv import HostKv, Load
from services.gpu_worker.state import WorkerState


class CheckpointLoads:
    """The way from host to device. A sequence is held back while its blocks are on the way."""

    def __init__(self, state: WorkerState, counters: CheckpointCounters) -> None:
        self._state = state
        self._options = state.options.checkpoints
        self._counters = counters

    def begin(self, kv: HostKv) -> None:
        """Bring back what the next waiting sequences want, if they could run with it."""
        self._release_arrived(kv)
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
            if len(wanted) + blocks_kept >= kv.scheduler.blocks_free:
                self._let_go_in_turn(kv, sequence_id)
                return  # what comes later in the order of service does not go first
            if not prefix or not kv.pays(loading_pays, blocks=len(prefix)):
                self._let_go_in_turn(kv, sequence_id)
            elif len(kv.loads) < self._options.loads_max:
                self._begin_load(kv, sequence_id, prefix)
            elif kv.scheduler.hold_back(sequence_id):
                # Else it would go past those before it, and compute what lies in host memory.
                kv.in_turn.add(sequence_id)

    def ended(self, kv: HostKv, event: BlocksLoaded) -> None:
        """Let the sequence find its blocks, but for those that are not what they had been."""
        load = self._take(kv, event.op_id)
        corrupt = {load.hashes_by_slot[slot] for slot in event.slots_corrupt}
        good = [h for h in load.hashes_by_slot.values() if h not in corrupt]
        kv.tier.drop(h for h in load.hashes_by_slot.values() if h in corrupt)
        kv.scheduler.commit_imports(load.op_id, good)
        kv.scheduler.drop_reserved(load.op_id)
        kv.arrived[load.sequence_id] = load.op_id
        kv.copy_ended(blocks=len(load.hashes_by_slot), duration_ns=event.duration_ns)
        self._counters.blocks_loaded += len(good)
        self._counters.blocks_corrupt += len(corrupt)

    def failed(self, kv: HostKv, op_id: str) -> None:
        """Let the sequence be computed again: what cannot be read would be tried for ever."""
        load = self._take(kv, op_id)
        kv.scheduler.release_blocks(op_id)
        kv.tier.drop(load.hashes_by_slot.values())

    def _take(self, kv: HostKv, op_id: str) -> Load:
        load = kv.loads.pop(op_id)
        kv.tier.unpin(load.hashes_by_slot.values())
        kv.scheduler.let_go(load.sequence_id)
        return load

    def _let_go_in_turn(self, kv: HostKv, sequence_id: str) -> None:
        if sequence_id in kv.in_turn:
            kv.in_turn.discard(sequence_id)
            kv.scheduler.let_go(sequence_id)

    def _begin_load(
        self, kv: HostKv, sequence_id: str, prefix: tuple[tuple[int, int], ...]
    ) -> None:
        op_id = kv.next_op_id("load")
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
        kv.in_turn &= waiting
        for sequence_id, ticket in list(kv.arrived.items()):
            if sequence_id not in waiting or kv.tier.held_prefix(
                kv.scheduler.wanted_hashes(sequence_id)
            ):
                kv.scheduler.release_blocks(ticket)
                del kv.arrived[sequence_id]
