"""How long one plan takes, and how many bytes it would move, for fleets of 8 to 1024 GPUs.

    python -m benchmarks.planner --json FILE

A 70B llama in bf16 on nodes of four 80 GB GPUs. Every replica runs in one shape with 200k tokens of
KV, then one node leaves and the others are planned for anew in another shape, so that every
position is matched: the worst case. A plan is Algorithm 1, the inheritance of sessions, two-step
matching and Algorithm 2 over all workers. `bytes_in_order_gib` is what taking the workers as they
come would move, `bytes_flat_gib` what matching without regard to nodes would.

What bounds it: a matching is O(n^3) with a small constant; 1024 workers in groups of four are 256
groups on 256 slots.
"""

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Final

import numpy
import scipy

from benchmarks.provenance import provenance, record_parser, write_record
from libs.contracts.placement import Policy
from libs.kernel.units import NS_PER_MS, NS_PER_S
from libs.policy.device_mapping import HeldPosition, Holder, MappingTask, map_flat, map_in_order
from libs.policy.migration_order import (
    ReplacedPosition,
    layer_growth,
    migration_steps,
    order_layers,
)
from libs.policy.model_profile import LayerTimes, ModelBytes, ModelProfile
from libs.policy.parallel_config import ConfigSearch, SearchOptions, Workload
from libs.policy.placement_plan import (
    ClusterView,
    CurrentReplica,
    PlacementPlan,
    PlanOptions,
    UsableWorker,
    plan_placement,
)
from libs.policy.shapes import ReplicaShape

GPUS: Final = (8, 16, 32, 64, 128, 256, 512, 1024)
GPUS_PER_NODE: Final = 4
GPU_BYTES: Final = 80 * 10**9
KV_TOKENS: Final = 200_000
TURNS: Final = 5
GIB: Final = 2**30
BEFORE: Final = ReplicaShape(stages=1, shards=4)
AFTER: Final = ReplicaShape(stages=2, shards=2)


def _times(prefill_ms: float, decode_ms: float) -> LayerTimes:
    return LayerTimes(
        prefill_ns=((1, round(prefill_ms * NS_PER_MS)),),
        decode_ns=((1, round(decode_ms * NS_PER_MS)), (64, round(1.5 * decode_ms * NS_PER_MS))),
    )


LLAMA_70B: Final = ModelProfile(
    name="llama-70b",
    source="made up; only the time of planning is measured",
    size=ModelBytes(
        layers=80,
        heads=64,
        kv_heads=8,
        layer_bytes=1_711_300_000,
        embedding_bytes=2_101_346_304,
        head_bytes=2_101_346_304,
        kv_bytes_per_token_layer=4_096,
    ),
    times_by_shards={
        1: _times(4.0, 0.60),
        2: _times(2.2, 0.34),
        4: _times(1.3, 0.20),
        8: _times(0.9, 0.14),
    },
    embedding_ns=((1, 300_000),),
    hop_prefill_ns=500_000,
    hop_decode_ns=30_000,
    prompt_tokens=512,
    output_tokens=128,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannerRow:
    """One line of the table."""

    gpus: int
    plan_s: float
    """Median over the turns."""
    plan_s_all: tuple[float, ...]
    plan_cpu_s: float
    """The same in processor time, which a neighbour on the cores disturbs less."""
    bytes_moved_gib: float
    bytes_in_order_gib: float
    bytes_flat_gib: float


def measure(gpus: Sequence[int], *, turns: int, report: Callable[[str], None]) -> dict[str, object]:
    """Run the benchmark; returns what is written as JSON: rows, and how they came about."""
    rows = []
    for count in gpus:
        row = _measure_fleet(count, turns=turns)
        report(f"{row.gpus:5d} GPUs  {row.plan_s:8.4f} s  {row.bytes_moved_gib:10.1f} GiB moved")
        rows.append(asdict(row))
    return {
        "rows": rows,
        "record": {
            **provenance("benchmarks.planner"),
            "turns": turns,
            "numpy": numpy.__version__,
            "scipy": scipy.__version__,
        },
    }


def a_fleet_that_lost_a_node(gpus: int) -> ClusterView:
    """A full fleet in the shape before, without its last node."""
    worker_ids = [f"w{index:04}" for index in range(gpus)]
    replicas = []
    held: dict[str, HeldPosition] = {}
    for number, start in enumerate(range(0, gpus, BEFORE.workers)):
        members = tuple(worker_ids[start : start + BEFORE.workers])
        replica_id = f"replica-{number:03}"
        is_leaving = start + BEFORE.workers > gpus - GPUS_PER_NODE
        replicas.append(
            CurrentReplica(
                replica_id=replica_id,
                replica_epoch=1,
                shape=BEFORE,
                worker_ids=members,
                kv_tokens=KV_TOKENS + number,
                is_broken=is_leaving,
            )
        )
        for rank, worker_id in enumerate(members):
            stage, shard = divmod(rank, BEFORE.shards)
            held[worker_id] = HeldPosition(
                replica_id=replica_id, shape=BEFORE, stage=stage, shard=shard
            )
    return ClusterView(
        workers=tuple(
            UsableWorker(
                worker_id=worker_id,
                node_id=f"node-{index // GPUS_PER_NODE:03}",
                memory_bytes=GPU_BYTES,
                held=held[worker_id],
            )
            for index, worker_id in enumerate(worker_ids[:-GPUS_PER_NODE])
        ),
        replicas=tuple(replicas),
        workload=Workload(requests_per_s=0.1 * gpus),
    )


def _measure_fleet(gpus: int, *, turns: int) -> PlannerRow:
    view = a_fleet_that_lost_a_node(gpus)
    durations, cpu_durations = [], []
    for _ in range(turns):
        started_ns, cpu_started_ns = time.perf_counter_ns(), time.process_time_ns()
        plan = _plan(view)
        cpu_durations.append((time.process_time_ns() - cpu_started_ns) / NS_PER_S)
        durations.append((time.perf_counter_ns() - started_ns) / NS_PER_S)
    task = _mapping_task(view, plan)
    return PlannerRow(
        gpus=gpus,
        plan_s=round(statistics.median(durations), 6),
        plan_s_all=tuple(round(duration, 6) for duration in durations),
        plan_cpu_s=round(statistics.median(cpu_durations), 6),
        bytes_moved_gib=round(plan.bytes_moved / GIB, 3),
        bytes_in_order_gib=round(map_in_order(task).bytes_moved / GIB, 3),
        bytes_flat_gib=round(map_flat(task).bytes_moved / GIB, 3),
    )


def _plan(view: ClusterView) -> PlacementPlan:
    """Search all shapes, then plan for the given one, then order the layers of all workers."""
    ConfigSearch(
        profile=LLAMA_70B,
        workload=view.workload,
        workers=len(view.workers),
        memory_bytes=GPU_BYTES,
        options=SearchOptions(),
    ).candidates()
    options = PlanOptions(policy=Policy.SPOTSERVE, search=SearchOptions(shape_only=AFTER))
    plan = plan_placement(view, profile=LLAMA_70B, options=options)
    assert isinstance(plan, PlacementPlan), plan
    held = {worker.worker_id: worker.held for worker in view.workers}
    changes = [
        ReplacedPosition(before=held[worker_id], after=_position(rank))
        for replica in plan.replicas
        for rank, worker_id in enumerate(replica.worker_ids)
    ]
    order = order_layers(layer_growth(LLAMA_70B.size, changes), bytes_max=GPU_BYTES / 8)
    migration_steps(order.layers, layers=LLAMA_70B.size.layers, stages=AFTER.stages)
    return plan


def _position(rank: int) -> HeldPosition:
    stage, shard = divmod(rank, AFTER.shards)
    return HeldPosition(replica_id="", shape=AFTER, stage=stage, shard=shard)


def _mapping_task(view: ClusterView, plan: PlacementPlan) -> MappingTask:
    """The matching that the plan solved, to solve it otherwise."""
    return MappingTask(
        size=LLAMA_70B.size,
        shape=AFTER,
        holders=[
            Holder(worker_id=worker.worker_id, node_id=worker.node_id, held=worker.held)
            for worker in view.workers
        ],
        heirs=[replica.inherits for replica in plan.replicas],
        kv_tokens={replica.replica_id: replica.kv_tokens for replica in view.replicas},
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print each row to stderr, and write the JSON record."""
    parser = record_parser(__doc__)
    parser.add_argument("--gpus", type=int, action="append", help="repeatable; default: 8 to 1024")
    parser.add_argument("--turns", type=int, default=TURNS)
    given = parser.parse_args(arguments)
    record = measure(
        given.gpus or GPUS,
        turns=given.turns,
        report=lambda line: print(line, file=sys.stderr, flush=True),
    )
    write_record(record, given.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
