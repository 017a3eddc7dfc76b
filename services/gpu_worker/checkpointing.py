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

from typing import assert_never

from libs.kernel.core import require
from libs.kernel.errors import InvariantViolation
from services.gpu_worker.checkpoint_loads import CheckpointLoads
from services.gpu_worker.checkpoint_options import CheckpointCounters
from services.gpu_worker.checkpoint_stores import CheckpointStores
from services.gpu_worker.events import (
    BlocksLoaded,
    BlocksStored,
    HostCopyFailed,
    HostEvent,
    StepFinished,
)
from services.gpu_worker.host_kv import HostKv, host_kv_of
from services.gpu_worker.state import WorkerState


class Checkpointing:
    """The worker's core as far as host memory is concerned. `advance` after every event."""

    def __init__(self, state: WorkerState) -> None:
        self._state = state
        self._is_on = state.options.checkpoints.is_on
        self._kvs: list[HostKv] = []
        """Of each position that serves or did, until it is gone and nothing of it is copied."""
        self.counters = CheckpointCounters()
        self._stores = CheckpointStores(state, self.counters)
        self._loads = CheckpointLoads(state, self.counters)

    @property
    def current(self) -> HostKv | None:
        """The checkpoints of the position that serves, to look at."""
        position = self._state.positions.serving
        return next((kv for kv in self._kvs if kv.position is position), None)

    @property
    def blocks_held(self) -> int:
        """Blocks in host memory now, for metrics."""
        return sum(kv.tier.blocks_held for kv in self._kvs)

    @property
    def copying_ns(self) -> int:
        """Time of the copies of these positions, for metrics."""
        return sum(kv.pace.copying_ns for kv in self._kvs)

    @property
    def stepping_ns(self) -> int:
        """Time of their steps, for metrics."""
        return sum(kv.pace.stepping_ns for kv in self._kvs)

    def advance(self) -> None:
        """Begin what can be begun between two steps."""
        if not self._is_on or self._state.step is not None:
            return
        self._follow_positions()
        kv = self.current
        if kv is not None and kv.position.is_serving:
            self._loads.begin(kv)
            self._stores.begin(kv)

    def step_finished(self, event: StepFinished) -> None:
        """Note how long a step took."""
        kv = self.current
        if kv is not None:
            kv.pace.step_ended(event.duration_ns)

    def copy_ended(self, event: HostEvent) -> None:
        """Take in the outcome of a copy."""
        kv = self._kv_of(event.op_id)
        match event:
            case BlocksStored():
                self._stores.ended(kv, event)
            case BlocksLoaded():
                self._loads.ended(kv, event)
            case HostCopyFailed():
                self.counters.copies_failed += 1
                if event.op_id in kv.loads:
                    self._loads.failed(kv, event.op_id)
                else:
                    self._stores.failed(kv)
            case _:
                assert_never(event)

    def check_invariants(self) -> None:
        """Raise InvariantViolation if a sequence is held back for nothing, or a tier is amiss."""
        for kv in self._kvs:
            kv.tier.check_invariants()
            ids = [load.sequence_id for load in kv.loads.values()]
            require(len(ids) == len(set(ids)), "a sequence is loaded twice at a time")
            require(not set(ids) & kv.arrived.keys(), "a sequence is loaded before it has run")

    def _follow_positions(self) -> None:
        """Begin the checkpoints of a position when it serves, and forget them when it is gone."""
        positions = self._state.positions
        self._kvs = [
            kv
            for kv in self._kvs
            if kv.is_copying or positions.find(kv.position.replica_id) is kv.position
        ]
        serving = positions.serving
        if serving is None or serving.scheduler is None or serving.host_room.blocks == 0:
            return
        if self.current is None:
            self._kvs.append(host_kv_of(serving, self._state.options.checkpoints))

    def _kv_of(self, op_id: str) -> HostKv:
        for kv in self._kvs:
            if op_id in kv.loads or (kv.store is not None and kv.store.op_id == op_id):
                return kv
        raise InvariantViolation(f"{op_id} is not under way")
