"""The sequences that wait, in the order in which they are to be admitted.

    online    by rank, then arrival
    offline   by rank, then the tenant served least, then those that ran before, then arrival

What is held back keeps its place and is passed over.
"""

from bisect import insort
from collections.abc import Iterator
from operator import itemgetter

from libs.engine.scheduling.fair_shares import FairShares
from libs.engine.scheduling.tracked_sequence import TrackedSequence
from libs.kernel.core import require


class WaitingQueue:
    """Two queues: of those who are served first, and of those who give way to them."""

    def __init__(self, shares: FairShares, *, is_fair: bool) -> None:
        self._shares = shares
        self._is_fair = is_fair
        self._online: list[TrackedSequence] = []
        self._offline: dict[int, dict[str, list[TrackedSequence]]] = {}
        """By rank and tenant; all under one name where tenants do not matter. Never empty."""
        self._offline_count = 0

    def __len__(self) -> int:
        return len(self._online) + self._offline_count

    def __iter__(self) -> Iterator[TrackedSequence]:
        """All, in the order of service as it is now."""
        yield from self._online
        for rank in sorted(self._offline):
            tenants = self._offline[rank]
            for tenant in sorted(tenants, key=self._tenant_order):
                yield from tenants[tenant]

    def add(self, sequence: TrackedSequence) -> None:
        """Let a sequence wait in its place."""
        if not sequence.gives_way:
            insort(self._online, sequence, key=TrackedSequence.order)
            return
        tenants = self._offline.setdefault(sequence.rank, {})
        insort(tenants.setdefault(self._tenant(sequence), []), sequence, key=_order_in_tenant)
        self._offline_count += 1

    def remove(self, sequence: TrackedSequence) -> None:
        """Let it wait no more."""
        if not sequence.gives_way:
            self._online.remove(sequence)
            return
        tenants = self._offline[sequence.rank]
        tenant = self._tenant(sequence)
        tenants[tenant].remove(sequence)
        self._offline_count -= 1
        if not tenants[tenant]:
            del tenants[tenant]
        if not tenants:
            del self._offline[sequence.rank]

    def online(self) -> list[TrackedSequence]:
        """Those who are served first and may be admitted."""
        return [sequence for sequence in self._online if not sequence.is_held_back]

    def next_offline(self) -> TrackedSequence | None:
        """The next of those who give way that may be admitted."""
        for rank in sorted(self._offline):
            firsts = []
            for tenant, lane in self._offline[rank].items():
                first = next((s for s in lane if not s.is_held_back), None)
                if first is not None:
                    firsts.append((self._tenant_order(tenant), first))
            if firsts:
                return min(firsts, key=itemgetter(0))[1]
        return None

    def check_invariants(self) -> None:
        """Raise InvariantViolation if an order is broken or a count is wrong."""
        require(self._online == sorted(self._online, key=TrackedSequence.order), "online unsorted")
        lanes = [lane for tenants in self._offline.values() for lane in tenants.values()]
        require(all(lanes), "an empty lane is kept")
        require(sum(len(lane) for lane in lanes) == self._offline_count, "offline is miscounted")
        for lane in lanes:
            require(lane == sorted(lane, key=_order_in_tenant), "offline unsorted")

    def _tenant(self, sequence: TrackedSequence) -> str:
        return sequence.request.tenant if self._is_fair else ""

    def _tenant_order(self, tenant: str) -> tuple[int, str]:
        return (self._shares.served(tenant) if self._is_fair else 0, tenant)


def _order_in_tenant(sequence: TrackedSequence) -> tuple[bool, int]:
    return (not sequence.is_preempted, sequence.arrival)
