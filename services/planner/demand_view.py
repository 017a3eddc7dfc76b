"""What is asked of the fleet, in typical requests per second: online arrivals, offline work due.

Routers count whatever they accept. What queues have submitted is taken off again: offline work is
asked for by its deadlines, not by how fast idle capacity lets it through.
"""

from libs.contracts.reports import OfflineQueueReport, RouterReport
from libs.kernel.bounded import RecentMap
from libs.policy.arrival_rate import ArrivalRate

QUEUES_MAX = 256
"""Queues remembered; past it the one heard first is forgotten."""


class DemandView:
    """Routers' and queues' reports; mutable, owned by the planner's core."""

    def __init__(self, *, window_ns: int, request_tokens: int) -> None:
        """`request_tokens`: of a typical request, by which offline tokens count as requests."""
        self._window_ns = window_ns
        self._request_tokens = request_tokens
        self._accepted = ArrivalRate(window_ns=window_ns)
        self._offline = ArrivalRate(window_ns=window_ns)
        self._due: RecentMap[str, tuple[int, float]] = RecentMap(entries_max=QUEUES_MAX)

    def router_reported(self, report: RouterReport, *, now_ns: int) -> None:
        """Take a router's report."""
        self._accepted.observe(report.router_id, count=report.sessions_accepted, now_ns=now_ns)

    def queue_reported(self, report: OfflineQueueReport, *, now_ns: int) -> None:
        """Take an offline queue's report: each tells what is due of all queues together."""
        self._offline.observe(report.queue_id, count=report.requests_submitted, now_ns=now_ns)
        self._due.put(report.queue_id, (now_ns, report.tokens_per_s_due))

    def requests_per_s(self, *, now_ns: int) -> float:
        """Return what the fleet should be able to do."""
        accepted = self._accepted.per_s(now_ns=now_ns)
        online = max(0.0, accepted - self._offline.per_s(now_ns=now_ns))
        return online + self._tokens_per_s_due(now_ns) / self._request_tokens

    def _tokens_per_s_due(self, now_ns: int) -> float:
        heard = [due for at_ns, due in self._due.values() if at_ns > now_ns - self._window_ns]
        return max(heard, default=0.0)
