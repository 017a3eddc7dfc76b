"""What requests waited for, as this router saw it, and whether that met the objective.

Of requests that it accepted itself: when an adopted one arrived, only the dead router knew.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, TypedDict

from libs.kernel.durations import DurationHistogram, RecentDurations
from libs.kernel.units import milliseconds
from services.online_router.options import Objective
from services.online_router.sessions import Session


class Work(StrEnum):
    """Whether somebody waits for the answer."""

    ONLINE = "online"
    OFFLINE = "offline"


@dataclass(slots=True, kw_only=True)
class WorkLatencies:
    """Of one kind of work, since the start."""

    queue: DurationHistogram = field(default_factory=DurationHistogram)
    """From the submission to the first dispatch to a worker."""
    ttft: DurationHistogram = field(default_factory=DurationHistogram)
    """From the submission to the first token on its way to the client."""
    tpot: DurationHistogram = field(default_factory=DurationHistogram)
    """Per token after the first, averaged over one answer."""
    e2e: DurationHistogram = field(default_factory=DurationHistogram)
    """From the submission to the end of a whole answer."""
    tokens_relayed: int = 0


class ReportedLatencies(TypedDict):
    """The fields of a RouterReport that Latencies fills."""

    tokens_offline: int
    online_ended: int
    online_within_slo: int
    ttft_slo_ms: float
    tpot_slo_ms: float
    ttft_ms_p50: float | None
    ttft_ms_p99: float | None
    tpot_ms_p50: float | None
    tpot_ms_p99: float | None


class Latencies:
    """Takes down when each thing happened to a session."""

    def __init__(self, objective: Objective) -> None:
        self.objective: Final = objective
        self.by_work: Final = {work: WorkLatencies() for work in Work}
        self.ttft_recent = RecentDurations()
        """Of online requests, as `tpot_recent`."""
        self.tpot_recent = RecentDurations()
        self.online_ended = 0
        """Online requests accepted here that ended, other than by their client's wish."""
        self.online_within_slo = 0
        """Of those, finished within the objective."""

    def dispatched(self, session: Session, *, now_ns: int) -> None:
        """A worker is told to run the session."""
        if session.received_at_ns is not None and not session.was_dispatched:
            session.was_dispatched = True
            self._of(session).queue.observe(now_ns - session.received_at_ns)

    def relayed(self, session: Session, tokens: int, *, now_ns: int) -> None:
        """Tokens go to the client for the first time."""
        if tokens <= 0:
            return
        latencies = self._of(session)
        latencies.tokens_relayed += tokens
        session.last_token_at_ns = now_ns
        if session.first_token_at_ns is None and session.received_at_ns is not None:
            session.first_token_at_ns = now_ns
            waited_ns = now_ns - session.received_at_ns
            latencies.ttft.observe(waited_ns)
            if work_of(session) is Work.ONLINE:
                self.ttft_recent.observe(waited_ns, now_ns=now_ns)

    def finished(self, session: Session, *, now_ns: int) -> None:
        """The whole answer is on its way to the client."""
        if session.received_at_ns is None:
            return
        latencies = self._of(session)
        latencies.e2e.observe(now_ns - session.received_at_ns)
        tpot_ns = _tpot_ns(session)
        if tpot_ns is not None:
            latencies.tpot.observe(tpot_ns)
        if work_of(session) is Work.OFFLINE:
            return
        if tpot_ns is not None:
            self.tpot_recent.observe(tpot_ns, now_ns=now_ns)
        self.online_ended += 1
        self.online_within_slo += self._is_within(session, tpot_ns)

    def failed(self, session: Session) -> None:
        """An accepted request ended without its answer, and not because its client left."""
        if session.received_at_ns is not None and work_of(session) is Work.ONLINE:
            self.online_ended += 1

    def reported(self, *, now_ns: int) -> "ReportedLatencies":
        """Return the fields of a RouterReport that are about this."""
        ttft_p50, ttft_p99 = self.ttft_recent.quantiles_ns(0.5, 0.99, now_ns=now_ns)
        tpot_p50, tpot_p99 = self.tpot_recent.quantiles_ns(0.5, 0.99, now_ns=now_ns)
        return {
            "tokens_offline": self.by_work[Work.OFFLINE].tokens_relayed,
            "online_ended": self.online_ended,
            "online_within_slo": self.online_within_slo,
            "ttft_slo_ms": milliseconds(self.objective.ttft_ns),
            "tpot_slo_ms": milliseconds(self.objective.tpot_ns),
            "ttft_ms_p50": _milliseconds(ttft_p50),
            "ttft_ms_p99": _milliseconds(ttft_p99),
            "tpot_ms_p50": _milliseconds(tpot_p50),
            "tpot_ms_p99": _milliseconds(tpot_p99),
        }

    def _is_within(self, session: Session, tpot_ns: int | None) -> bool:
        assert session.received_at_ns is not None
        first = session.first_token_at_ns
        ttft_ns = 0 if first is None else first - session.received_at_ns
        return ttft_ns <= self.objective.ttft_ns and (tpot_ns or 0) <= self.objective.tpot_ns

    def _of(self, session: Session) -> WorkLatencies:
        return self.by_work[work_of(session)]


def work_of(session: Session) -> Work:
    """Offline is whatever has a priority below 0."""
    return Work.OFFLINE if session.known_spec().priority < 0 else Work.ONLINE


def _tpot_ns(session: Session) -> int | None:
    first, last = session.first_token_at_ns, session.last_token_at_ns
    tokens = len(session.token_ids)
    if first is None or last is None or tokens < 2:
        return None
    return (last - first) // (tokens - 1)


def _milliseconds(value_ns: int | None) -> float | None:
    return None if value_ns is None else milliseconds(value_ns)
