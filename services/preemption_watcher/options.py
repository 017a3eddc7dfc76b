"""What a watcher core is told at the start: its node, its sources and its bounds."""

from dataclasses import dataclass

from libs.kernel.units import NS_PER_MS, NS_PER_S

MANUAL = "manual"
"""The source of notices that RaiseNotice gave; it is never polled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceOptions:
    """How one source is polled."""

    name: str
    """A subject token; stands in the notices."""
    poll_interval_ns: int
    """From the end of a poll to the next; short for a source that itself waits for a change."""
    tells_once: bool = False
    """Whether it gives each notice a single time, as a queue does, instead of with every poll."""
    can_confirm: bool = False
    """Whether the cloud wants to know that the node is evacuated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WatcherOptions:
    """Identity, sources and bounds. Every bound's docstring says what happens at it."""

    node_id: str
    sources: tuple[SourceOptions, ...] = ()
    is_manual_allowed: bool = True
    """Whether RaiseNotice and WithdrawNotice are taken, or rejected as not allowed."""
    safety_ns: int = 2 * NS_PER_S
    """Taken off every grace: for the way of a message and for a cloud that is early."""
    grace_ns_max: int | None = None
    """No grace is longer, whatever a source says; none trusts the sources."""
    stop_after_ns: int | None = None
    """How long the watcher goes on after it was told to end, where that is itself a notice."""
    repeat_ns: int = 2 * NS_PER_S
    """Every notice that holds is sent again so often."""
    withdrawn_repeats: int = 5
    """How often a withdrawal is sent; whoever misses all of them keeps the notice to its end."""
    notices_max: int = 256
    """Notices held; one more is refused and counted. A node has one or two; a queue tells of many
    nodes."""
    backoff_ns: int = 500 * NS_PER_MS
    """Before a failed source is asked again; doubles with each failure in a row."""
    backoff_ns_max: int = 5 * NS_PER_S
    """A notice may come late by this much after a long failure; the shortest leave 30 s."""
    linger_ns: int = 600 * NS_PER_S
    """A notice that its source told only once is forgotten this long after its deadline."""
    unknown_deadline_ns: int = 3_600 * NS_PER_S
    """The same for one without a deadline: from when it was first seen."""

    def __post_init__(self) -> None:
        assert self.notices_max > 0
        assert self.withdrawn_repeats > 0
        assert 0 < self.backoff_ns <= self.backoff_ns_max
        names = [source.name for source in self.sources]
        assert len({*names, MANUAL}) == len(names) + 1, "each source has a name of its own"
