"""Algorithm 1 of SpotServe: which (D, P, M, B) a set of GPUs should run.

    feasible = every C that fits memory and keeps up with the arrivals
    feasible:     the C of least request latency; among near-equals the one of fewest workers, or,
                  where all workers are used anyway, of most throughput
    not feasible: the C of most throughput

Departs from the paper, each as a switch of SearchOptions: request latency includes waiting; a
continuously batching engine takes as many sequences as fit and computes at the occupancy that the
arrivals cause; memory is real bytes rather than a least number of GPUs.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from libs.kernel.units import MIB, NS_PER_S
from libs.policy.cost_model import (
    batch_times,
    kv_bytes_max,
    queueing_ns,
    requests_per_s,
    weight_bytes_max,
)
from libs.policy.model_profile import ModelProfile
from libs.policy.shapes import ParallelConfig, ReplicaShape


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchOptions:
    """What is searched, and by which measure."""

    batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    is_batching_continuous: bool = True
    """B is the most that fits; latency is taken at the batch that just keeps up. Else B is
    searched, and every batch is full, as in the paper."""
    has_queueing: bool = True
    """Latency includes waiting."""
    uses_all_workers: bool = True
    """D is the most that fits: workers that are there and paid for compute. Else the fewest."""
    shape_only: ReplicaShape | None = None
    """The one shape to consider; None: all that the model allows."""
    shards_max: int = 64
    near_tie_percent: int = 5
    """Latencies this close are equal; then fewer workers win, or more throughput."""
    workspace_bytes: int = 0
    """Of each worker, for activations and buffers."""

    def __post_init__(self) -> None:
        assert self.batches
        assert list(self.batches) == sorted(set(self.batches))


PAPER_SEARCH = SearchOptions(
    batches=(4,), is_batching_continuous=False, has_queueing=False, near_tie_percent=0
)
"""As the artifact does it: the chosen B is overwritten with the largest, here 4."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What arrives."""

    requests_per_s: float
    arrival_variation: float = 1.0
    """Squared coefficient of variation of the gaps; 1 for Poisson arrivals."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A configuration with what is expected of it."""

    config: ParallelConfig
    execution_ns: int
    latency_ns: int
    requests_per_s: float
    """When every batch is full."""
    keeps_up: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class NoShapeFits:
    """Nothing can be run: why, and by how much."""

    reason: str
    bytes_missing: int
    """On each worker, for the shape that comes nearest; 0 if workers are missing instead."""
    workers_missing: int = 0


def shapes(
    profile: ModelProfile, *, workers: int, options: SearchOptions
) -> Iterator[ReplicaShape]:
    """Yield what the model can be cut into with so many workers, whatever the memory."""
    size = profile.size
    for shards in sorted(profile.times_by_shards):
        if shards > min(options.shards_max, workers) or size.heads % shards:
            continue
        for stages in range(1, min(size.layers, workers // shards) + 1):
            shape = ReplicaShape(stages=stages, shards=shards)
            if options.shape_only not in (None, shape):
                continue
            if profile.stages_divide is None or profile.stages_divide % stages == 0:
                yield shape


def candidates(
    profile: ModelProfile,
    workload: Workload,
    *,
    workers: int,
    memory_bytes: int | None,
    options: SearchOptions,
) -> list[Candidate]:
    """List every configuration that fits; memory is of one worker, None where it is unknown."""
    found = []
    for shape in shapes(profile, workers=workers, options=options):
        batch_max = batch_that_fits(profile, shape, memory_bytes=memory_bytes, options=options)
        if batch_max is None or shape.workers < profile.replica_workers_min:
            continue
        if options.is_batching_continuous:
            found.append(_continuous(profile, workload, shape, workers, batch_max, options))
        else:
            found += [
                _static(profile, workload, shape, workers, batch, options)
                for batch in options.batches
                if batch <= batch_max
            ]
    return found


def choose_config(
    profile: ModelProfile,
    workload: Workload,
    *,
    workers: int,
    memory_bytes: int | None,
    options: SearchOptions,
) -> Candidate | NoShapeFits:
    """Decide Algorithm 1 for so many workers."""
    found = candidates(
        profile, workload, workers=workers, memory_bytes=memory_bytes, options=options
    )
    if not found:
        return why_nothing_fits(
            profile, workers=workers, memory_bytes=memory_bytes, options=options
        )
    return best_of(found, options)


def best_of(found: Sequence[Candidate], options: SearchOptions) -> Candidate:
    """Choose among candidates as Algorithm 1 does; ties go to the smaller shape."""
    feasible = [candidate for candidate in found if candidate.keeps_up]
    if not feasible:
        return max(found, key=lambda c: (c.requests_per_s, -c.latency_ns, -c.config.shape.workers))
    least_ns = min(candidate.latency_ns for candidate in feasible)
    close_ns = least_ns * (100 + options.near_tie_percent) // 100
    near = [candidate for candidate in feasible if candidate.latency_ns <= close_ns]
    return min(near, key=lambda c: _preference(c, options))


def _preference(candidate: Candidate, options: SearchOptions) -> tuple[float, int, ReplicaShape]:
    config = candidate.config
    first = -candidate.requests_per_s if options.uses_all_workers else config.workers
    return (first, candidate.latency_ns, config.shape)


def batch_that_fits(
    profile: ModelProfile,
    shape: ReplicaShape,
    *,
    memory_bytes: int | None,
    options: SearchOptions,
) -> int | None:
    """Return the largest batch whose weights and KV fit one worker.

    None if not even the smallest batch fits, or not the longest request.
    """
    if memory_bytes is None:
        return options.batches[-1]
    if memory_bytes < _bytes_needed(profile, shape, options):
        return None
    left = memory_bytes - weight_bytes_max(profile, shape) - options.workspace_bytes
    sequences = left // max(1, kv_bytes_max(profile, shape, tokens=profile.session_tokens))
    return max(batch for batch in options.batches if batch <= sequences)


def why_nothing_fits(
    profile: ModelProfile, *, workers: int, memory_bytes: int | None, options: SearchOptions
) -> NoShapeFits:
    """Say what is missing: workers of the least replica, or bytes on each worker."""
    shape = options.shape_only
    least = min(profile.times_by_shards) if shape is None else shape.workers
    workers_min = max(profile.replica_workers_min, least)
    if workers < workers_min:
        return NoShapeFits(
            reason=f"{profile.name} needs at least {workers_min} workers, {workers} can be used",
            bytes_missing=0,
            workers_missing=workers_min - workers,
        )
    needs = [
        _bytes_needed(profile, shape, options)
        for shape in shapes(profile, workers=workers, options=options)
        if shape.workers >= profile.replica_workers_min
    ]
    if not needs or memory_bytes is None:
        return NoShapeFits(
            reason=f"{profile.name} cannot be cut for {workers} workers: its {profile.size.layers} "
            f"layers and {profile.size.heads} heads and the measured tensor degrees "
            f"{sorted(profile.times_by_shards)} allow {_named(shape)}",
            bytes_missing=0,
        )
    missing = min(needs) - memory_bytes
    return NoShapeFits(
        reason=f"{profile.name} does not fit {workers} workers of {memory_bytes / MIB:.0f} MiB: "
        f"the best cut needs {missing / MIB:.1f} MiB more on each",
        bytes_missing=missing,
    )


def _bytes_needed(profile: ModelProfile, shape: ReplicaShape, options: SearchOptions) -> int:
    """The least memory of a worker in this shape."""
    tokens = max(profile.context_tokens_max, options.batches[0] * profile.session_tokens)
    kv_bytes = kv_bytes_max(profile, shape, tokens=tokens)
    return weight_bytes_max(profile, shape) + kv_bytes + options.workspace_bytes


def _named(shape: ReplicaShape | None) -> str:
    return "no shape" if shape is None else f"no shape {shape.stages} x {shape.shards}"


def _static(
    profile: ModelProfile,
    workload: Workload,
    shape: ReplicaShape,
    workers: int,
    batch: int,
    options: SearchOptions,
) -> Candidate:
    times = batch_times(profile, shape, batch=batch)
    service_ns = times.execution_ns(output_tokens=profile.output_tokens)
    return _candidate(workload, shape, workers, batch, service_ns, service_ns, options)


def _continuous(
    profile: ModelProfile,
    workload: Workload,
    shape: ReplicaShape,
    workers: int,
    batch_max: int,
    options: SearchOptions,
) -> Candidate:
    """Take the latency at the smallest batch that keeps up: there the replicas settle."""
    replicas = workers // shape.workers
    batches = [batch for batch in options.batches if batch <= batch_max]
    service_ns = 0
    for batch in batches:
        times = batch_times(profile, shape, batch=batch)
        service_ns = times.execution_ns(output_tokens=profile.output_tokens)
        rate = requests_per_s(replicas=replicas, batch=batch, execution_ns=service_ns)
        if rate > workload.requests_per_s:
            break
    full = batch_times(profile, shape, batch=batch_max)
    full_ns = full.execution_ns(output_tokens=profile.output_tokens)
    return _candidate(workload, shape, workers, batch_max, service_ns, full_ns, options)


def _candidate(
    workload: Workload,
    shape: ReplicaShape,
    workers: int,
    batch: int,
    service_ns: int,
    full_ns: int,
    options: SearchOptions,
) -> Candidate:
    """Judge a shape: `service_ns` at the occupancy expected, `full_ns` when every batch is full."""
    replicas_max = workers // shape.workers
    replica_rate = requests_per_s(replicas=1, batch=batch, execution_ns=full_ns)
    replicas = replicas_max
    if not options.uses_all_workers:
        needed = int(workload.requests_per_s / replica_rate) + 1
        replicas = min(replicas_max, needed)
    rate = replicas * replica_rate
    waiting_ns: int | None = 0
    if options.has_queueing:
        waiting_ns = queueing_ns(
            requests_per_s=workload.requests_per_s,
            slots=replicas * batch,
            service_ns=full_ns,
            arrival_variation=workload.arrival_variation,
        )
    return Candidate(
        config=ParallelConfig(replicas=replicas, shape=shape, batch=batch),
        execution_ns=service_ns,
        latency_ns=service_ns + (3_600 * NS_PER_S if waiting_ns is None else waiting_ns),
        requests_per_s=rate,
        keeps_up=rate >= workload.requests_per_s and waiting_ns is not None,
    )
