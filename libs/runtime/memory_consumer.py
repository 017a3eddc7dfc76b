"""A durable consumer of the in-memory broker: who holds which message, and until when.

A message is in one of four states:

    unseen --fetch--> leased --ack, term--> done
                        |  ^
       ack_wait, nak    v  |  fetch (delivery_count + 1)
                      waiting --fetch with deliveries_max used up--> exhausted

Like nats-server 2.9: redeliveries go first and do not count against `leases_max`; whoever held the
message at any time may acknowledge it; exhaustion is noticed by the next fetch.
"""

import heapq
from dataclasses import dataclass
from typing import Final

from libs.runtime.bus import ConsumerOptions, StoredMessage
from libs.runtime.memory_stream import MemoryStream
from libs.runtime.subject_matching import is_match

AGENDA_SLACK: Final = 64
"""Outdated entries that the agenda may hold beyond one for each message outstanding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryLease:
    """One delivery, named by consumer and sequence."""

    stream: str
    durable: str
    message: StoredMessage
    delivery_count: int


@dataclass(slots=True)
class _Outstanding:
    delivery_count: int
    again_at_ns: int


class MemoryConsumer:
    """Hands out the messages of one stream that match its filter, each to one holder at a time."""

    def __init__(self, options: ConsumerOptions, stream: MemoryStream) -> None:
        self.options = options
        self._stream = stream
        self._next_sequence = 1
        self._outstanding: dict[int, _Outstanding] = {}
        self._agenda: list[tuple[int, int]] = []

    def fetch(self, count: int, *, now_ns: int) -> tuple[list[MemoryLease], list[int]]:
        """Lease up to `count` messages; also return the sequences found exhausted."""
        leases: list[MemoryLease] = []
        exhausted: list[int] = []
        while len(leases) < count:
            sequence = self._pop_due(now_ns)
            if sequence is None:
                break
            outstanding = self._outstanding[sequence]
            message = self._stream.get(sequence)
            if message is None:
                del self._outstanding[sequence]
            elif outstanding.delivery_count >= self.options.deliveries_max:
                del self._outstanding[sequence]
                exhausted.append(sequence)
            else:
                leases.append(self._lease(message, outstanding.delivery_count + 1, now_ns))
        while len(leases) < count and len(self._outstanding) < self.options.leases_max:
            message = self._pop_unseen()
            if message is None:
                break
            leases.append(self._lease(message, 1, now_ns))
        return leases, exhausted

    def finish(self, sequence: int) -> None:
        """The message is done, acknowledged or terminated; a work queue forgets it."""
        self._outstanding.pop(sequence, None)
        if self._stream.options.retention == "work_queue":
            self._stream.remove(sequence)

    def give_back(self, sequence: int, *, delay_ns: int, now_ns: int) -> None:
        """Hand the message out again after the delay, if it is outstanding."""
        self._reschedule(sequence, now_ns + delay_ns)

    def keep(self, sequence: int, *, now_ns: int) -> None:
        """Start `ack_wait_ns` anew, if the message is outstanding."""
        self._reschedule(sequence, now_ns + self.options.ack_wait_ns)

    def next_due_at_ns(self) -> int | None:
        """Return when the next lease runs out or delayed message comes back, if any."""
        while self._agenda:
            at_ns, sequence = self._agenda[0]
            outstanding = self._outstanding.get(sequence)
            if outstanding is not None and outstanding.again_at_ns == at_ns:
                return at_ns
            heapq.heappop(self._agenda)
        return None

    def _pop_due(self, now_ns: int) -> int | None:
        due_at_ns = self.next_due_at_ns()
        if due_at_ns is None or due_at_ns > now_ns:
            return None
        return heapq.heappop(self._agenda)[1]

    def _pop_unseen(self) -> StoredMessage | None:
        state = self._stream.state()
        self._next_sequence = max(self._next_sequence, state.first_sequence)
        while self._next_sequence <= state.last_sequence:
            message = self._stream.get(self._next_sequence)
            self._next_sequence += 1
            if message is not None and is_match(self.options.filter_subject, message.subject):
                return message
        return None

    def _lease(self, message: StoredMessage, delivery_count: int, now_ns: int) -> MemoryLease:
        again_at_ns = now_ns + self.options.ack_wait_ns
        self._outstanding[message.sequence] = _Outstanding(delivery_count, again_at_ns)
        heapq.heappush(self._agenda, (again_at_ns, message.sequence))
        return MemoryLease(
            stream=self.options.stream,
            durable=self.options.durable,
            message=message,
            delivery_count=delivery_count,
        )

    def _reschedule(self, sequence: int, again_at_ns: int) -> None:
        outstanding = self._outstanding.get(sequence)
        if outstanding is None:
            return
        outstanding.again_at_ns = again_at_ns
        heapq.heappush(self._agenda, (again_at_ns, sequence))
        if len(self._agenda) > AGENDA_SLACK + 2 * len(self._outstanding):
            self._agenda = sorted(
                (held.again_at_ns, held_sequence)
                for held_sequence, held in self._outstanding.items()
            )
