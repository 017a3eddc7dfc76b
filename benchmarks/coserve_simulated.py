"""A slice of the live co-serving benchmark in virtual time; pure.

The worker is the live one, its engine takes what a profile says, give or take a stated deviation.
So SLOs can be set by what online requests alone would feel, and a live run has a prediction.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from benchmarks.coserve_load import Slice
from benchmarks.coserve_rows import RequestTimes, SliceResult, Slos
from libs.engine.scheduler import SchedulerOptions
from libs.engine.scheduling.coserve import Coserve, CoserveOptions
from libs.kernel.units import NS_PER_S
from libs.policy.latency_model import LatencyModel
from services.gpu_worker.checkpoint_options import (
    LINK_ASSUMED,
    CheckpointOptions,
    CheckpointPolicy,
    HostRoom,
)
from services.simulator.coserve.device import Device
from services.simulator.coserve.requests import CoserveRequest
from services.simulator.coserve.run import CoserveOutcome, CoserveRunOptions, run_coserve

OFFLINE_OPEN: Final = 96
"""Offline sessions at the worker: all that can run, and some that wait."""
SETTLE_NS: Final = 2 * NS_PER_S
"""Offline work runs alone for so long before a slice begins."""
ANSWERS_NS_MAX: Final = 40 * NS_PER_S
"""After its time a slice is cut off: a policy that falls behind would never end it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A way of co-serving that is measured."""

    name: str
    policy: Coserve
    has_safepoints: bool = True
    checkpoints: CheckpointPolicy = "off"

    def engine(
        self, options: SchedulerOptions, *, slos: Slos, latency: LatencyModel
    ) -> SchedulerOptions:
        """Return the options of an engine that serves in this way."""
        return replace(
            options,
            layers=options.layers if self.has_safepoints else None,
            coserve=CoserveOptions(
                policy=self.policy,
                ttft_slo_ns=slos.ttft_ns,
                tbt_slo_ns=slos.tbt_ns,
                latency=latency,
            ),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedEngine:
    """The engine of a live run, as far as its slices take time."""

    options: SchedulerOptions
    room: HostRoom
    vocabulary_size: int
    latency: LatencyModel
    """What steps take; the scheduler believes the same."""
    deviation: float = 0.0
    seed: int = 7

    def serve(
        self,
        variant: Variant,
        slice_: Slice,
        *,
        slos: Slos,
        backlog: Iterator[CoserveRequest],
    ) -> SliceResult:
        """Serve a slice by a worker that has done nothing yet."""
        engine = variant.engine(self.options, slos=slos, latency=self.latency)
        assert self.options.layers is not None
        options = CoserveRunOptions(
            seed=self.seed,
            engine=engine,
            checkpoints=CheckpointOptions(policy=variant.checkpoints, room=self.room),
            vocabulary_size=self.vocabulary_size,
            device=Device(
                times=self.latency,
                layers=self.options.layers,
                link=LINK_ASSUMED,
                deviation=self.deviation,
            ),
            online=slice_.requests,
            duration_ns=slice_.duration_ns,
            offline_open_max=OFFLINE_OPEN,
            settle_ns=SETTLE_NS,
            drain_ns_max=ANSWERS_NS_MAX,
        )
        return slice_of(run_coserve(options, backlog=backlog))


def slice_of(outcome: CoserveOutcome) -> SliceResult:
    """Return a run as the live benchmark has it; what was not answered counts as answered when the
    run ended, which is too early."""
    requests = tuple(
        RequestTimes(
            arrival_ns=served.arrival_ns,
            token_at_ns=served.token_at_ns or [outcome.ended_at_ns],
        )
        for served in outcome.served
    )
    return SliceResult(requests=requests, tally=outcome.tally, duration_ns=outcome.elapsed_ns)
