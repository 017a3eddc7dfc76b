"""What each link really delivers, which decides between moving KV and recomputing it.

An exponentially weighted mean of goodput, weighted by bytes: a transfer of `memory_bytes` moves the
estimate by 63 %, a small one hardly, for its duration is mostly latency.
"""

import math
from dataclasses import dataclass
from typing import Final

from libs.kernel.bounded import RecentMap
from libs.kernel.units import MIB, NS_PER_S

PEERS_MAX: Final = 4096
"""Links remembered; the one measured longest ago is forgotten first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkRateOptions:
    """How fast an estimate follows what is measured."""

    memory_bytes: int = 256 * MIB
    """About a tenth of a second of a good link: longer than its hiccups, shorter than its moods."""


class LinkRates:
    """Measured goodput per peer, in bytes per second."""

    def __init__(self, options: LinkRateOptions | None = None) -> None:
        self._options = options or LinkRateOptions()
        self._rates: RecentMap[str, float] = RecentMap(entries_max=PEERS_MAX)

    def observe(self, peer: str, *, bytes_moved: int, duration_ns: int) -> None:
        """Note one transfer; one of no bytes or no duration says nothing."""
        if bytes_moved <= 0 or duration_ns <= 0:
            return
        measured = bytes_moved * NS_PER_S / duration_ns
        known = self._rates.get(peer)
        if known is None:
            self._rates.put(peer, measured)
            return
        weight = 1.0 - math.exp(-bytes_moved / self._options.memory_bytes)
        # The harmonic mean: two transfers of equal size take the sum of their durations.
        self._rates.put(peer, 1.0 / ((1.0 - weight) / known + weight / measured))

    def bytes_per_s(self, peer: str) -> int | None:
        """Return the estimate, or None for a link that was never measured."""
        rate = self._rates.get(peer)
        return None if rate is None else max(1, round(rate))

    def forget(self, peer: str) -> None:
        """Drop what was measured: the peer's address may mean another link tomorrow."""
        self._rates.pop(peer)
