"""The notices that hold, each with the time it leaves by our own clock. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from libs.contracts.preemption import NoticeKind, NoticeWithdrawn, PreemptionNotice
from libs.kernel.core import require
from services.preemption_watcher.options import WatcherOptions
from services.preemption_watcher.readings import Reading, detail_of


class NoticeKey(NamedTuple):
    """What makes two notices one."""

    node_id: str
    kind: NoticeKind
    notice_id: str


class HeldNotice:
    """One notice, from its first sight to its withdrawal or expiry."""

    __slots__ = (
        "_options",
        "deadline_at_ns",
        "key",
        "observed_at_ns",
        "observed_at_unix_ns",
        "reading",
        "source",
        "tells_once",
    )

    def __init__(
        self,
        reading: Reading,
        *,
        key: NoticeKey,
        source: str,
        tells_once: bool,
        now_ns: int,
        now_unix_ns: int,
        options: WatcherOptions,
    ) -> None:
        self._options = options
        self.key = key
        self.source = source
        self.tells_once = tells_once
        """Whether the source will neither repeat nor withdraw it."""
        self.observed_at_ns = now_ns
        self.observed_at_unix_ns = now_unix_ns
        self.reading = reading
        self.deadline_at_ns = self._deadline(reading, now_ns=now_ns, now_unix_ns=now_unix_ns)
        """When the node must be empty, by our own clock and with the safety margin taken off."""

    def update(self, reading: Reading, *, now_ns: int, now_unix_ns: int) -> bool:
        """Take in what the source says of it now; return whether anything has changed.

        The same words again change nothing, so that a wall clock that steps moves no deadline.
        """
        if reading == self.reading:
            return False
        self.reading = reading
        self.deadline_at_ns = self._deadline(reading, now_ns=now_ns, now_unix_ns=now_unix_ns)
        return True

    def expires_at_ns(self) -> int | None:
        """When it is forgotten unasked; None as long as its source keeps giving it."""
        if not self.tells_once:
            return None
        end_at_ns = self.deadline_at_ns
        if end_at_ns is None:
            end_at_ns = self.observed_at_ns + self._options.unknown_deadline_ns
        return end_at_ns + self._options.linger_ns

    def message(self, *, now_ns: int) -> PreemptionNotice:
        """Return the notice with what is left of it now."""
        deadline_at_ns = self.deadline_at_ns
        return PreemptionNotice(
            notice_id=self.key.notice_id,
            node_id=self.key.node_id,
            kind=self.key.kind,
            source=self.source,
            deadline_at_unix_ns=self.reading.deadline_at_unix_ns,
            observed_at_unix_ns=self.observed_at_unix_ns,
            grace_ns=None if deadline_at_ns is None else max(0, deadline_at_ns - now_ns),
            detail=detail_of(self.reading.detail),
        )

    def withdrawal(self, *, detail: str) -> NoticeWithdrawn:
        """Return the message that takes it back."""
        return NoticeWithdrawn(
            notice_id=self.key.notice_id,
            node_id=self.key.node_id,
            kind=self.key.kind,
            source=self.source,
            detail=detail,
        )

    def _deadline(self, reading: Reading, *, now_ns: int, now_unix_ns: int) -> int | None:
        """The least of what the source says and what is configured, less the safety margin."""
        ends_at_ns: list[int] = []
        if reading.deadline_at_unix_ns is not None:
            ends_at_ns.append(now_ns + reading.deadline_at_unix_ns - now_unix_ns)
        if reading.grace_ns is not None:
            ends_at_ns.append(self.observed_at_ns + reading.grace_ns)
        if not ends_at_ns:
            return None
        if self._options.grace_ns_max is not None:
            ends_at_ns.append(self.observed_at_ns + self._options.grace_ns_max)
        return min(ends_at_ns) - self._options.safety_ns


@dataclass(slots=True, kw_only=True)
class _Withdrawal:
    message: NoticeWithdrawn
    repeats_left: int


class NoticeTable:
    """Notices that hold, and withdrawals that are still being repeated; both bounded."""

    def __init__(self, options: WatcherOptions) -> None:
        self._options = options
        self._held: dict[NoticeKey, HeldNotice] = {}
        self._withdrawn: dict[NoticeKey, _Withdrawal] = {}

    def __len__(self) -> int:
        return len(self._held)

    def __iter__(self) -> Iterator[HeldNotice]:
        """In the order in which they were first seen."""
        return iter(list(self._held.values()))

    @property
    def is_full(self) -> bool:
        """Whether one more would exceed the bound."""
        return len(self._held) >= self._options.notices_max

    @property
    def is_quiet(self) -> bool:
        """Whether there is nothing to repeat."""
        return not self._held and not self._withdrawn

    def get(self, key: NoticeKey) -> HeldNotice | None:
        """Return the notice of this key."""
        return self._held.get(key)

    def find(self, *, node_id: str, notice_id: str) -> HeldNotice | None:
        """Return the notice of this id, whatever its kind."""
        keys = (NoticeKey(node_id, kind, notice_id) for kind in NoticeKind)
        return next((self._held[key] for key in keys if key in self._held), None)

    def add(self, notice: HeldNotice) -> None:
        """Hold one more; it is no longer withdrawn."""
        require(notice.key not in self._held, f"{notice.key} is held twice")
        require(not self.is_full, "more notices than the bound")
        self._withdrawn.pop(notice.key, None)
        self._held[notice.key] = notice

    def withdraw(self, notice: HeldNotice, *, detail: str) -> NoticeWithdrawn:
        """Hold it no more, and repeat that for a while; at the bound the oldest is cut short."""
        del self._held[notice.key]
        message = notice.withdrawal(detail=detail)
        repeats = self._options.withdrawn_repeats - 1
        if repeats:
            self._withdrawn[notice.key] = _Withdrawal(message=message, repeats_left=repeats)
        while len(self._withdrawn) > self._options.notices_max:
            del self._withdrawn[next(iter(self._withdrawn))]
        return message

    def expire(self, *, now_ns: int) -> list[HeldNotice]:
        """Forget and return the notices that nobody will withdraw and that are long over."""
        over = [
            notice
            for notice in self
            if (expires_at_ns := notice.expires_at_ns()) is not None and expires_at_ns <= now_ns
        ]
        for notice in over:
            del self._held[notice.key]
        return over

    def withdrawals(self) -> list[NoticeWithdrawn]:
        """Return the withdrawals that are still being repeated."""
        return [entry.message for entry in self._withdrawn.values()]

    def count_repeat(self) -> None:
        """Every withdrawal was sent once more; those that were sent often enough are over."""
        for key, entry in list(self._withdrawn.items()):
            entry.repeats_left -= 1
            if entry.repeats_left == 0:
                del self._withdrawn[key]

    def check_invariants(self) -> None:
        """Raise InvariantViolation if a notice holds and is withdrawn, or a bound is passed."""
        require(not self._held.keys() & self._withdrawn.keys(), "a notice holds and is withdrawn")
        require(len(self._held) <= self._options.notices_max, "more notices than the bound")
        require(len(self._withdrawn) <= self._options.notices_max, "more withdrawals than allowed")
        for key, notice in self._held.items():
            require(key == notice.key, f"{notice.key} is held under another key")
        for entry in self._withdrawn.values():
            require(entry.repeats_left > 0, "a withdrawal outlives its repeats")
