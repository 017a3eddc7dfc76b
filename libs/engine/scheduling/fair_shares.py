"""Shares offline service among tenants: whoever was served least comes first.

Each tenant has a counter of the tokens computed for it, a generated one counted as two of a prompt:
each takes a step of its own. A tenant that comes, or comes back, starts from the least counter of
those that are there, so that time spent away is no credit; one that was ahead of them stays ahead.
Between two tenants that both have work all the time, the counters differ by at most the work that
is running, whatever each asks for.
Source: VTC (Sheng et al. 2023), algorithm 2; departs from it in charging tokens as they are
computed, and none twice that an eviction makes compute again.
"""

from collections import Counter
from typing import Final

from libs.kernel.bounded import RecentMap
from libs.kernel.core import require

PROMPT_TOKEN_COST: Final = 1
GENERATED_TOKEN_COST: Final = 2
TENANTS_REMEMBERED_MAX: Final = 1024
"""Tenants without work whose counter is kept; the one away longest begins anew."""


class FairShares:
    """The counters of all tenants that have offline sequences here, or had some lately."""

    def __init__(self) -> None:
        self._served: dict[str, int] = {}
        self._sequences: Counter[str] = Counter()
        self._away: RecentMap[str, int] = RecentMap(entries_max=TENANTS_REMEMBERED_MAX)
        self._last_left = 0

    def served(self, tenant: str) -> int:
        """Return the counter of a tenant that has a sequence here."""
        return self._served[tenant]

    def join(self, tenant: str) -> None:
        """Note a sequence of this tenant."""
        self._sequences[tenant] += 1
        if tenant not in self._served:
            least = min(self._served.values(), default=self._last_left)
            self._served[tenant] = max(self._away.pop(tenant) or 0, least)

    def leave(self, tenant: str) -> None:
        """Note the end of one."""
        require(self._sequences[tenant] > 0, f"tenant {tenant!r} has no sequence")
        self._sequences[tenant] -= 1
        if self._sequences[tenant] == 0:
            del self._sequences[tenant]
            self._last_left = self._served.pop(tenant)
            self._away.put(tenant, self._last_left)

    def charge(self, tenant: str, cost: int) -> None:
        """Add to a counter; a negative cost takes back what a step was given up with."""
        if tenant in self._served:
            self._served[tenant] += cost


def cost_of(*, prompt_tokens: int, first: int, end: int) -> int:
    """Return what it costs to compute the positions from `first` to before `end`."""
    prompt = max(0, min(end, prompt_tokens) - first)
    return prompt * PROMPT_TOKEN_COST + (max(0, end - first) - prompt) * GENERATED_TOKEN_COST
