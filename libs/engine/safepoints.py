"""Where a step may be given up: between layers, if its yield signal is set by then.

    request(n)  any thread      ----------*------------------------------
    step n      engine's thread  |layers|?|layers|?|layers|?  given up
                                                   ^ the first safepoint behind the signal

A safepoint lies before every so many layers, counted over the whole model, as the plan says. What a
step wrote before it was given up is written again when its tokens are planned anew: a safepoint
saves nothing and restores nothing.

The host enqueues work on a GPU far ahead of it. So that giving up does not wait for all that was
enqueued, it launches a group of layers only when the group before the last one is done.
Source: ConServe, section on preemptible execution; departs from it in numbered signals, so that one
which comes too late for its step cannot stop the next, and in the vote (see `must_stop`).
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from libs.engine.steps import StepPlan
from libs.engine.yield_signal import YieldSignal


@dataclass(frozen=True, slots=True, kw_only=True)
class StepYield:
    """One step that was given up, as one process saw it. Instants are monotonic and local."""

    step_id: int
    layer: int
    """The first layer that was not computed."""
    requested_at_ns: int | None
    """When this process was told; None if only another one was, or a stage before this gave up."""
    checked_at_ns: int | None
    """The last safepoint of the step here at which there was no signal yet; None: there was none.
    Always before requested_at_ns, or a safepoint has missed its signal."""
    stopped_at_ns: int


@dataclass(slots=True, kw_only=True)
class SafepointCounters:
    """What the safepoints of one process came to since it started, for metrics."""

    steps: int = 0
    """Steps that had safepoints."""
    step_ns: int = 0
    """Their forward passes."""
    checks: int = 0
    check_ns: int = 0
    """Spent at safepoints: reading the signal and waiting for the device, not the vote, which is
    part of a sum that is made anyway."""
    yields: int = 0
    stop_ns: int = 0
    """Sum over the yields that were requested here, from the signal to the stop."""
    stop_ns_max: int = 0


class Safepoints:
    """The safepoints of one forward pass after another. `request` may come from any thread."""

    def __init__(
        self, device: torch.device, *, now_ns: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self.counters = SafepointCounters()
        self.on_yield: Callable[[StepYield], None] = _ignore
        """Told of each step that is given up, on the engine's thread."""
        self._device = device
        self._now_ns = now_ns
        self._signal = YieldSignal()
        self._requested_at_ns = 0
        # Orders the times that are noted like the writes and reads that they belong to.
        self._lock = threading.Lock()
        self._step_id = -1
        self._layers_between: int | None = None
        self._checked_at_ns: int | None = None
        self._group_done: torch.cuda.Event | None = None

    def request(self, step_id: int) -> None:
        """Ask this step to end at its next safepoint; without effect on any other step."""
        with self._lock:
            if not self._signal.is_requested(step_id):
                self._signal.request(step_id)
                self._requested_at_ns = self._now_ns()

    @contextmanager
    def of_step(self, plan: StepPlan) -> Iterator[None]:
        """Have the safepoints of this plan while its layers are computed."""
        self._step_id = plan.step_id
        self._layers_between = plan.layers_between_safepoints
        self._checked_at_ns = None
        self._group_done = None
        started_at_ns = self._now_ns()
        try:
            yield
        finally:
            if self._layers_between is not None:
                self.counters.steps += 1
                self.counters.step_ns += self._now_ns() - started_at_ns
            self._layers_between = None

    @property
    def are_any(self) -> bool:
        """Whether the step under way has safepoints at all."""
        return self._layers_between is not None

    def is_before(self, layer: int) -> bool:
        """Whether a safepoint lies before this layer."""
        return self._layers_between is not None and layer > 0 and layer % self._layers_between == 0

    def must_stop(self, *, layer: int, vote: Callable[[bool], bool] | None = None) -> bool:
        """Say whether the step ends here, before this layer.

        Processes that compute together `vote`: each brings its own wish, and all get the same
        answer, yes if any wished it; so they take the same branch and none waits for another.
        """
        is_requested = self._is_requested()
        is_stopping = is_requested if vote is None else vote(is_requested)
        if is_stopping:
            self.give_up(layer=layer)
        return is_stopping

    def give_up(self, *, layer: int) -> None:
        """Note that the step ends before this layer."""
        stopped_at_ns = self._now_ns()
        with self._lock:
            is_own = self._signal.is_requested(self._step_id)
            requested_at_ns = self._requested_at_ns if is_own else None
        counters = self.counters
        counters.yields += 1
        if requested_at_ns is not None:
            counters.stop_ns += stopped_at_ns - requested_at_ns
            counters.stop_ns_max = max(counters.stop_ns_max, stopped_at_ns - requested_at_ns)
        self.on_yield(
            StepYield(
                step_id=self._step_id,
                layer=layer,
                requested_at_ns=requested_at_ns,
                checked_at_ns=self._checked_at_ns,
                stopped_at_ns=stopped_at_ns,
            )
        )

    def _is_requested(self) -> bool:
        started_at_ns = self._now_ns()
        self._bound_run_ahead()
        with self._lock:
            is_requested = self._signal.is_requested(self._step_id)
            read_at_ns = self._now_ns()
        if not is_requested:
            self._checked_at_ns = read_at_ns
        self.counters.checks += 1
        self.counters.check_ns += read_at_ns - started_at_ns
        return is_requested

    def _bound_run_ahead(self) -> None:
        """Wait for the group of layers before the one that was launched last; experimental."""
        if self._device.type != "cuda":
            return
        launched = torch.cuda.Event()  # type: ignore[no-untyped-call]
        launched.record(torch.cuda.current_stream(self._device))
        if self._group_done is not None:
            self._group_done.synchronize()
        self._group_done = launched


def _ignore(_: StepYield) -> None:
    """Tell nobody."""
