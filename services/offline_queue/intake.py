"""Which line goes next: sources, the parts held of them, and the order among all.

A source is a batch, or a single job. Urgent sources go first, by deadline. Among the others the
tenant goes that was served least, and of its sources the one with the earliest deadline. Within a
source lines go in the order of their prompts' beginnings, which is the depth-first order of the
tree of their prefixes, so that neighbours find each other's blocks in the cache; a part that has
waited long goes before all that.
Source: prefix-sharing order with a bound on waiting, HyGen (NeurIPS 2025), section 4.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from libs.kernel.core import require
from libs.policy.fair_share import ServiceCounters, cost
from services.offline_queue.events import LeasedPart, WaitingLine

SOURCES_RANKED_MAX: Final = 64
"""Sources that are looked at whenever something happens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where lines come from."""

    source_id: str
    alias: str
    tenant: str
    deadline_at_ns: int
    window_ns: int
    """From its beginning to its deadline."""
    is_open: bool
    """Whether lines may be taken up now."""


@dataclass(slots=True, kw_only=True)
class HeldLine:
    """A line of a held part that is not stored yet."""

    waiting: WaitingLine
    attempts: int = 0
    """That failed in the fleet."""
    put_offs: int = 0
    not_before_ns: int = 0
    is_running: bool = False
    is_urgent: bool = False
    """Whether it runs above the priority of offline work."""

    @property
    def cost(self) -> int:
        """What its tenant is charged with while it runs."""
        return cost(
            prompt_tokens=self.waiting.prompt_tokens, answer_tokens=self.waiting.answer_tokens
        )


@dataclass(slots=True, kw_only=True)
class HeldPart:
    """A leased part."""

    part_key: str
    source_id: str
    held_since_ns: int
    kept_at_ns: int
    """When the lease, or its last renewal that the broker was told of, was asked for."""
    is_given_up: bool
    """It was taken up too often: its lines are failed, not asked."""
    is_acknowledging: bool = False
    lines: dict[int, HeldLine] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A line to take up."""

    source: Source
    part: HeldPart
    line: HeldLine


class Intake:
    """Sources and held parts; mutable, owned by the core."""

    def __init__(self, *, aged_ns: int, lease_ns: int) -> None:
        self._aged_ns = aged_ns
        self._lease_ns = lease_ns
        self.sources: dict[str, Source] = {}
        self.parts: dict[str, HeldPart] = {}
        self.counters = ServiceCounters()

    def put_source(self, source: Source) -> None:
        """Add a source, or say how it is now."""
        if self.sources.get(source.source_id) != source:
            self.sources[source.source_id] = source
            self._note_tenants()

    def drop_source(self, source_id: str) -> list[str]:
        """Forget a source and its parts; return the keys of these."""
        self.sources.pop(source_id, None)
        self._note_tenants()
        keys = [part.part_key for part in self.parts_of(source_id)]
        for key in keys:
            del self.parts[key]
        return keys

    def hold(
        self, leased: LeasedPart, *, kept_at_ns: int, now_ns: int, deliveries_max: int
    ) -> HeldPart:
        """Take a leased part; one that is held already, under an older lease, keeps its lines, but
        for those that wait and that others have stored meanwhile."""
        part = self.parts.get(leased.part_key)
        if part is None:
            part = HeldPart(
                part_key=leased.part_key,
                source_id=leased.source_id,
                held_since_ns=now_ns,
                kept_at_ns=kept_at_ns,
                is_given_up=leased.delivery_count > deliveries_max,
                lines={line.line: HeldLine(waiting=line) for line in leased.lines},
            )
            self.parts[leased.part_key] = part
            return part
        part.kept_at_ns = max(part.kept_at_ns, kept_at_ns)
        missing = {line.line for line in leased.lines}
        part.lines = {
            number: line
            for number, line in part.lines.items()
            if line.is_running or number in missing
        }
        return part

    def is_lapsed(self, part: HeldPart, *, now_ns: int) -> bool:
        """Whether the part may be another queue's by now."""
        return now_ns - part.kept_at_ns >= self._lease_ns

    def line(self, part_key: str, line: int) -> HeldLine | None:
        """Return a held line; None if it has been dropped meanwhile."""
        part = self.parts.get(part_key)
        return None if part is None else part.lines.get(line)

    def parts_of(self, source_id: str) -> Iterator[HeldPart]:
        """Yield the parts held of a source, in the order of their keys."""
        for key in sorted(self.parts):
            if self.parts[key].source_id == source_id:
                yield self.parts[key]

    def waiting(self, source_id: str) -> int:
        """Return how many lines of a source are held and do not run."""
        return sum(
            not line.is_running for part in self.parts_of(source_id) for line in part.lines.values()
        )

    def running(self, alias: str | None = None) -> int:
        """Return how many lines run, of one model or of all."""
        return sum(
            line.is_running
            for part in self.parts.values()
            for line in part.lines.values()
            if alias is None or self.sources[part.source_id].alias == alias
        )

    def urgent(self) -> int:
        """Return how many lines run above the priority of offline work."""
        return sum(
            line.is_running and line.is_urgent
            for part in self.parts.values()
            for line in part.lines.values()
        )

    def ranked(self, *, urgent: frozenset[str]) -> list[Source]:
        """Return the open sources, whose turn it is first; `urgent` names those in a hurry.

        Of many only the first, and those of which parts are held.
        """
        hurried = [s for s in self.sources.values() if s.is_open and s.source_id in urgent]
        others = [s for s in self.sources.values() if s.is_open and s.source_id not in urgent]
        hurried.sort(key=lambda s: (s.deadline_at_ns, s.source_id))
        others.sort(
            key=lambda s: (
                self.counters.served(s.tenant),
                s.tenant,
                s.deadline_at_ns,
                s.source_id,
            )
        )
        holding = {part.source_id for part in self.parts.values()}
        return [
            source
            for number, source in enumerate(hurried + others)
            if number < SOURCES_RANKED_MAX or source.source_id in holding
        ]

    def next_of(self, source: Source, *, now_ns: int) -> Choice | None:
        """Return the line of this source that goes next, if one may go now."""
        best: tuple[tuple[bool, str, str, int], Choice] | None = None
        for part in self.parts_of(source.source_id):
            if self.is_lapsed(part, now_ns=now_ns):
                continue
            is_aged = now_ns - part.held_since_ns >= self._aged_ns
            for line in part.lines.values():
                if line.is_running or line.not_before_ns > now_ns:
                    continue
                prefix = "" if is_aged else line.waiting.prefix
                rank = (not is_aged, prefix, part.part_key, line.waiting.line)
                if best is None or rank < best[0]:
                    best = (rank, Choice(source=source, part=part, line=line))
        return None if best is None else best[1]

    def start(self, choice: Choice, *, is_urgent: bool) -> None:
        """Mark a line as running and charge its tenant with what it is predicted to take."""
        choice.line.is_running = True
        choice.line.is_urgent = is_urgent
        self.counters.charge(choice.source.tenant, choice.line.cost)

    def stop(self, part_key: str, line: int, *, tokens_charged: int | None) -> HeldLine | None:
        """Mark a line as not running; correct the charge to what it took, None: to nothing.

        Returns None if it has been dropped meanwhile.
        """
        held = self.line(part_key, line)
        if held is None or not held.is_running:
            return None
        held.is_running = False
        held.is_urgent = False
        source = self.sources.get(self.parts[part_key].source_id)
        if source is not None:
            self.counters.charge(source.tenant, (tokens_charged or 0) - held.cost)
        return held

    def check_invariants(self) -> None:
        """What must hold between any two events; raises InvariantViolation."""
        for part in self.parts.values():
            require(part.source_id in self.sources, f"{part.part_key} is of no source")

    def _note_tenants(self) -> None:
        self.counters.set_active({s.tenant for s in self.sources.values() if s.is_open})
