"""When a replica stops for a change of shape: just in time.

Source: SpotServe section 4.1, whose l_exe(S | C) is `prefill_left_ns + S * step_ns` here.

    a node leaves:  S = max{ S <= left : l_exe(S) <  T- - T_mig }   go on as long as possible
    a node comes:   S = min{ S <= left : l_exe(S) >= T+ }           stop as soon as it is ready
    guard:          T_mig < l_exe(S): else computing anew is cheaper than moving

The paper stops between batches of equal length; with continuous batching `left` is that of the
longest session and a stop lies between any two steps.
"""

from dataclasses import dataclass
from enum import StrEnum


class AfterStop(StrEnum):
    """What becomes of the sessions of a replica that stops."""

    MOVE = "move"
    """Their KV goes to the heirs."""
    RECOMPUTE = "recompute"
    """Moving would take longer than computing it again."""
    FINISHED = "finished"
    """All end before the stop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How fast a replica gets on with what it runs."""

    prefill_left_ns: int
    step_ns: int
    steps_left: int
    """Until the longest session ends."""
    computed_ns: int = 0
    """What computing the KV so far has cost, and would cost again."""

    def __post_init__(self) -> None:
        assert self.step_ns > 0
        assert self.steps_left >= 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrangement:
    """The stop: after so many more steps, `stop_after_ns` from now."""

    steps: int
    stop_after_ns: int
    after: AfterStop


def arrange_for_loss(pace: Pace, *, grace_ns: int, migration_ns: int) -> Arrangement:
    """Run as long as the move still fits the grace period; at once if it does not even now."""
    window_ns = grace_ns - migration_ns
    steps = _steps_below(pace, window_ns)
    if steps is None:
        return Arrangement(steps=0, stop_after_ns=0, after=_guarded(pace, 0, migration_ns))
    return _arranged(pace, steps, migration_ns)


def arrange_for_newcomer(pace: Pace, *, ready_after_ns: int, migration_ns: int) -> Arrangement:
    """Run until the newcomer is ready and not a step longer."""
    wanted_ns = max(0, ready_after_ns - pace.prefill_left_ns)
    steps = min(pace.steps_left, -(-wanted_ns // pace.step_ns))
    return _arranged(pace, steps, migration_ns)


def migration_ns(*, bytes_moved_max: int, link_bytes_per_s: int, setup_ns: int) -> int:
    """T_mig: what the busiest link carries, and what forming the new group takes."""
    assert link_bytes_per_s > 0
    return setup_ns + bytes_moved_max * 1_000_000_000 // link_bytes_per_s


def _steps_below(pace: Pace, window_ns: int) -> int | None:
    """The most steps that end strictly before the window does."""
    room_ns = window_ns - pace.prefill_left_ns - 1
    if room_ns < 0:
        return None
    return min(pace.steps_left, room_ns // pace.step_ns)


def _arranged(pace: Pace, steps: int, migration_ns: int) -> Arrangement:
    stop_after_ns = pace.prefill_left_ns + steps * pace.step_ns
    after = _guarded(pace, stop_after_ns, migration_ns)
    if steps == pace.steps_left:
        after = AfterStop.FINISHED
    return Arrangement(steps=steps, stop_after_ns=stop_after_ns, after=after)


def _guarded(pace: Pace, ahead_ns: int, migration_ns: int) -> AfterStop:
    is_worth_it = migration_ns < pace.computed_ns + ahead_ns
    return AfterStop.MOVE if is_worth_it else AfterStop.RECOMPUTE
