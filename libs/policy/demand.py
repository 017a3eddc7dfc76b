"""How much is asked for: online requests at their SLO, and offline work that falls due."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from libs.kernel.units import NS_PER_S

DUE_NS_MIN: Final = NS_PER_S
"""Overdue work is asked for within a second: soon, yet not at an infinite rate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OfflineWork:
    """Tokens to be generated before a deadline; None: whenever there is room."""

    tokens: int
    due_after_ns: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What the fleet should be able to do."""

    online_requests_per_s: float
    offline: tuple[OfflineWork, ...] = ()

    def requests_per_s(self, *, output_tokens: int) -> float:
        """Both kinds as typical requests, so that one search serves them."""
        return self.online_requests_per_s + offline_tokens_per_s(self.offline) / output_tokens


def offline_tokens_per_s(work: Sequence[OfflineWork]) -> float:
    """Return the least steady rate at which nothing misses its deadline.

    Served in order of deadlines, all work due by then must be done at each of them.
    """
    tokens = 0
    rate = 0.0
    due = [(w.due_after_ns, w.tokens) for w in work if w.due_after_ns is not None]
    for due_after_ns, due_tokens in sorted(due):
        tokens += due_tokens
        rate = max(rate, tokens * NS_PER_S / max(due_after_ns, DUE_NS_MIN))
    return rate
