"""Sessions that have ended, for clients that missed the end; each kind has its own bound and time.

Whoever asked online comes back within seconds or not at all. Whoever asked for offline work may be
dead and be replaced much later, and what was computed for it should not be computed again: its
answers are kept until it says that it has them, within an hour.
"""

from collections.abc import Iterator

from libs.kernel.bounded import RecentMap
from services.online_router.options import RouterOptions
from services.online_router.sessions import Session


class EndedSessions:
    """Ended sessions by request id."""

    def __init__(self, options: RouterOptions) -> None:
        self._online = _Kept(options.linger_ns, entries_max=options.sessions_ended_max)
        self._offline = _Kept(
            options.linger_offline_ns, entries_max=options.sessions_ended_offline_max
        )

    def __len__(self) -> int:
        return sum(len(kept.sessions) for kept in (self._online, self._offline))

    def __contains__(self, request_id: str) -> bool:
        return self.get(request_id) is not None

    def get(self, request_id: str) -> Session | None:
        """Return the session, if it is still kept."""
        return self._online.sessions.get(request_id) or self._offline.sessions.get(request_id)

    def put(self, session: Session) -> Session | None:
        """Keep a session that has just ended; return the one forgotten for it, if any."""
        is_answer = session.failure is None and session.finish_reason is not None
        kept = self._offline if is_answer and session.is_offline else self._online
        return kept.sessions.put(session.request_id, session)

    def pop(self, request_id: str) -> Session | None:
        """Forget a session; return it if it was kept."""
        return self._online.sessions.pop(request_id) or self._offline.sessions.pop(request_id)

    def pop_old(self, *, now_ns: int) -> Iterator[Session]:
        """Forget, and yield, what has been kept for its time."""
        for kept in (self._online, self._offline):
            while (oldest := kept.sessions.oldest()) is not None:
                if now_ns - oldest.ended_at_ns < kept.linger_ns:
                    break
                kept.sessions.pop(oldest.request_id)
                yield oldest


class _Kept:
    """Sessions of one kind, the one that ended first is the oldest."""

    def __init__(self, linger_ns: int, *, entries_max: int) -> None:
        self.linger_ns = linger_ns
        self.sessions: RecentMap[str, Session] = RecentMap(entries_max=entries_max)
