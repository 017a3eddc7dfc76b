"""Algorithm 1 of SpotServe: which (D, P, M, B) a set of GPUs should run.

    feasible = every C that fits memory and keeps up with the arrivals
    feasible:     the C of least request latency; among near-equals the one of fewest workers, or,
                  where all workers are used anyway, of most throughput
    not feasible: the C of most throughput

Departs from the paper, each as a switch of SearchOptions: request latency includes waiting; a
continuously batching engine takes as many sequences as fit and computes at the occupancy that the
arrivals cause; memory is real bytes rather than a least number of GPUs.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final, Protocol

from libs.kernel.units import MIB, NS_PER_S
from libs.policy.cost_model import (
    execution_ns,
    kv_bytes_max,
    queueing_ns,
    requests_per_s,
    weight_bytes_max,
)
from libs.policy.model_profile import ModelProfile
from libs.policy.shapes import ParallelConfig, ReplicaShape

OVERLOADED_NS: Final = 3_600 * NS_PER_S
"""Stands for a wait without end, where a sum needs a number."""
SEARCHES_REMEMBERED: Final = 256
"""Numbers of workers, and what they hold, that a fleet goes back and forth between."""


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


NO_WORKLOAD: Final = Workload(requests_per_s=0.0)
"""In place of any: what fits does not depend on what arrives."""


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


class ShapeMemory(Protocol):
    """What the workers of a replica need, as they themselves compute it; a value, hashable."""

    def bytes_needed(self, shape: ReplicaShape, *, tokens: int) -> int | None:
        """Return the least memory of every worker for KV of so many tokens, at least those of the
        longest session that workers admit; None if the model cannot be cut so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileMemory:
    """What a profile alone lets expect: every weight once, KV once, even shards."""

    profile: ModelProfile

    def bytes_needed(self, shape: ReplicaShape, *, tokens: int) -> int | None:
        """Return the least memory of the worker that holds the most."""
        tokens = max(tokens, self.profile.context_tokens_max)
        kv_bytes = kv_bytes_max(self.profile, shape, tokens=tokens)
        return weight_bytes_max(self.profile, shape) + kv_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigSearch:
    """One decision of Algorithm 1."""

    profile: ModelProfile
    workload: Workload
    workers: int
    """That may be used."""
    memory_bytes: int | None
    """Of each, for weights and KV; None: unknown, everything fits."""
    options: SearchOptions
    memory: ShapeMemory | None = None
    """The workers' own arithmetic; None: the profile's."""

    def choose(self) -> Candidate | NoShapeFits:
        """Decide, or say what is missing."""
        found = self.candidates()
        return best_of(found, self.options) if found else self.why_nothing_fits()

    def candidates(self) -> list[Candidate]:
        """List every configuration that fits."""
        found = []
        for fit in _fits(replace(self, workload=NO_WORKLOAD)):
            if self.options.is_batching_continuous:
                found.append(self._continuous(fit))
            else:
                found += [self._static(fit, batch=batch) for batch in fit.execution_ns]
        return found

    def shapes(self) -> Iterator[ReplicaShape]:
        """Yield what the model can be cut into with so many workers, whatever the memory."""
        size = self.profile.size
        for shards in sorted(self.profile.times_by_shards):
            if shards > min(self.options.shards_max, self.workers) or size.heads % shards:
                continue
            for stages in range(1, min(size.layers, self.workers // shards) + 1):
                shape = ReplicaShape(stages=stages, shards=shards)
                if self._is_allowed(shape):
                    yield shape

    def batch_that_fits(self, shape: ReplicaShape) -> int | None:
        """Return the largest batch whose weights and KV fit one worker.

        None if not even the smallest batch fits, or not the longest request.
        """
        if self.memory_bytes is None:
            return self.options.batches[-1]
        return max(
            (
                batch
                for batch in self.options.batches
                if (needed := self.bytes_needed(shape, batch=batch)) is not None
                and needed <= self.memory_bytes
            ),
            default=None,
        )

    def bytes_needed(self, shape: ReplicaShape, *, batch: int | None = None) -> int | None:
        """Return the least memory of a worker in this shape, for a batch or the smallest one.

        None if the workers cannot be cut so, whatever their memory.
        """
        memory = self.memory or ProfileMemory(profile=self.profile)
        tokens = (batch or self.options.batches[0]) * self.profile.session_tokens
        needed = memory.bytes_needed(shape, tokens=tokens)
        return None if needed is None else needed + self.options.workspace_bytes

    def why_nothing_fits(self) -> NoShapeFits:
        """Say what is missing: workers of the least replica, or bytes on each worker."""
        profile, only = self.profile, self.options.shape_only
        least = min(profile.times_by_shards) if only is None else only.workers
        workers_min = max(profile.replica_workers_min, least)
        if self.workers < workers_min:
            return NoShapeFits(
                reason=f"{profile.name} needs at least {workers_min} workers, "
                f"{self.workers} can be used",
                bytes_missing=0,
                workers_missing=workers_min - self.workers,
            )
        needs = [
            needed
            for shape in self.shapes()
            if shape.workers >= profile.replica_workers_min
            and (needed := self.bytes_needed(shape)) is not None
        ]
        if not needs or self.memory_bytes is None:
            named = "no shape" if only is None else f"no shape {only.stages} x {only.shards}"
            return NoShapeFits(
                reason=f"{profile.name} cannot be cut for {self.workers} workers: its "
                f"{profile.size.layers} layers and {profile.size.heads} heads and the measured "
                f"tensor degrees {sorted(profile.times_by_shards)} allow {named}",
                bytes_missing=0,
            )
        missing = min(needs) - self.memory_bytes
        return NoShapeFits(
            reason=f"{profile.name} does not fit {self.workers} workers of "
            f"{self.memory_bytes / MIB:.0f} MiB: the best cut needs {missing / MIB:.1f} MiB more "
            "on each",
            bytes_missing=missing,
        )

    def _is_allowed(self, shape: ReplicaShape) -> bool:
        divided = self.profile.stages_divide
        is_even = divided is None or divided % shape.stages == 0
        return is_even and self.options.shape_only in (None, shape)

    def _static(self, fit: "_Fit", *, batch: int) -> Candidate:
        service_ns = fit.execution_ns[batch]
        return self._judged(fit.shape, batch=batch, service_ns=service_ns, full_ns=service_ns)

    def _continuous(self, fit: "_Fit") -> Candidate:
        """Take the latency at the smallest batch that keeps up: there the replicas settle."""
        replicas = self.workers // fit.shape.workers
        service_ns = 0
        for batch, service_ns in fit.execution_ns.items():
            rate = requests_per_s(replicas=replicas, batch=batch, execution_ns=service_ns)
            if rate > self.workload.requests_per_s:
                break
        full_ns = fit.execution_ns[fit.batch_max]
        return self._judged(fit.shape, batch=fit.batch_max, service_ns=service_ns, full_ns=full_ns)

    def _judged(
        self, shape: ReplicaShape, *, batch: int, service_ns: int, full_ns: int
    ) -> Candidate:
        """Judge a shape: `service_ns` as busy as expected, `full_ns` when every batch is full."""
        arriving = self.workload.requests_per_s
        replica_rate = requests_per_s(replicas=1, batch=batch, execution_ns=full_ns)
        replicas = self.workers // shape.workers
        if not self.options.uses_all_workers:
            replicas = min(replicas, int(arriving / replica_rate) + 1)
        waiting_ns: int | None = 0
        if self.options.has_queueing:
            waiting_ns = queueing_ns(
                requests_per_s=arriving,
                slots=replicas * batch,
                service_ns=full_ns,
                arrival_variation=self.workload.arrival_variation,
            )
        rate = replicas * replica_rate
        return Candidate(
            config=ParallelConfig(replicas=replicas, shape=shape, batch=batch),
            execution_ns=service_ns,
            latency_ns=service_ns + (OVERLOADED_NS if waiting_ns is None else waiting_ns),
            requests_per_s=rate,
            keeps_up=rate >= arriving and waiting_ns is not None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fit:
    """A shape that can be run."""

    shape: ReplicaShape
    batch_max: int
    execution_ns: Mapping[int, int]
    """By batch, up to the largest that fits, ascending."""


@lru_cache(maxsize=SEARCHES_REMEMBERED)
def _fits(search: ConfigSearch) -> tuple[_Fit, ...]:
    """Return what fits, whatever arrives: a planner asks again and again as demand changes."""
    found = []
    for shape in search.shapes():
        batch_max = search.batch_that_fits(shape)
        if batch_max is None or shape.workers < search.profile.replica_workers_min:
            continue
        times = {
            batch: execution_ns(search.profile, shape, batch=batch)
            for batch in search.options.batches
            if batch <= batch_max
        }
        found.append(_Fit(shape=shape, batch_max=batch_max, execution_ns=times))
    return tuple(found)


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
