"""Offline work and its deadlines: what can wait, what is served first, what has to hurry.

Laxity is the time to spare: what is left until the deadline, less what the remaining work will take
at the rate at which it is being harvested. While there is plenty, tenants share fairly; when it
runs out, the earliest deadline goes first, and its requests rise step by step from the priority of
offline work towards that of online work, a reserved share of them at most.
Source: least-laxity and earliest-deadline-first scheduling (Liu and Layland 1973; Mok 1983).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from libs.kernel.units import NS_PER_S

PRIORITY_STEPS: Final = (-7, -4, -1)
"""Between offline work with time to spare and online work, the least urgent first."""
PRIORITY_LATE: Final = 0
"""Of work that is predicted to be late: beside online requests."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DueWork:
    """Tokens that are due at an instant of the clock that `now_ns` comes from."""

    tokens: int
    due_at_ns: int


def laxity_ns(*, now_ns: int, deadline_at_ns: int, tokens: int, tokens_per_s: float) -> int:
    """Return the time to spare, negative if it will be late.

    Without a rate yet (0) only the time left is known, and that is returned.
    """
    left_ns = deadline_at_ns - now_ns
    if tokens_per_s <= 0:
        return left_ns
    return left_ns - round(tokens / tokens_per_s * NS_PER_S)


def least_laxity_ns(work: Sequence[DueWork], *, now_ns: int, tokens_per_s: float) -> int | None:
    """Return the least time to spare of all, served one after the other by deadline.

    None: there is no work.
    """
    tokens = 0
    least: int | None = None
    for item in sorted(work, key=lambda item: item.due_at_ns):
        tokens += item.tokens
        laxity = laxity_ns(
            now_ns=now_ns,
            deadline_at_ns=item.due_at_ns,
            tokens=tokens,
            tokens_per_s=tokens_per_s,
        )
        least = laxity if least is None else min(least, laxity)
    return least


def priority_at(laxity: int, *, slack_ns: int, priority_idle: int) -> int:
    """Return the priority of a request with so much time to spare.

    `priority_idle` from `slack_ns` on; below that one step of PRIORITY_STEPS for each further part
    of it that is gone; PRIORITY_LATE when none is left.
    """
    if laxity >= slack_ns:
        return priority_idle
    if laxity <= 0:
        return PRIORITY_LATE
    steps = len(PRIORITY_STEPS)
    return PRIORITY_STEPS[steps - 1 - laxity * steps // slack_ns]
