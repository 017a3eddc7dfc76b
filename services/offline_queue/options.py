"""What the queue's core is told once; durations in nanoseconds."""

from dataclasses import dataclass

from libs.kernel.units import NS_PER_MS, NS_PER_S


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueOptions:
    """Limits and habits of one queue."""

    queue_id: str
    process_id: int = 0
    report_interval_ns: int = 1 * NS_PER_S
    survey_interval_ns: int = 2 * NS_PER_S
    """How often each open batch is looked at: its counts, its deadline, what is left to do."""
    lease_ns: int = 30 * NS_PER_S
    """How long the broker waits for a lease to be renewed before it hands the part out again."""
    lines_running_max: int = 256
    """Lines of this queue that are with the routers at once, whatever capacity says."""
    parts_held_max: int = 32
    """Parts leased at once."""
    deliveries_max: int = 20
    """A part that was taken up more often is given up: its lines end as failed."""
    attempts_max: int = 4
    """A line that failed in the fleet so often, without its own fault, ends as failed."""
    put_off_ns: int = 1 * NS_PER_S
    """A line that was turned away waits so long; doubled each time, up to `put_off_ns_max`."""
    put_off_ns_max: int = 30 * NS_PER_S
    lease_again_ns: int = 2 * NS_PER_S
    """A batch with nothing to lease is asked again after so long."""
    slack_ns: int = 600 * NS_PER_S
    """Time to spare below which a batch counts as urgent, or a quarter of its window if that is
    shorter."""
    urgent_share: float = 0.25
    """Of the lines running, how many may be above the priority of offline work."""
    aged_ns: int = 60 * NS_PER_S
    """A part held this long is finished before others, whatever its prefixes."""
    silence_ns: int = 5_000 * NS_PER_MS
    """A worker or queue not heard for so long is not counted with."""

    @property
    def keep_interval_ns(self) -> int:
        """How often leases are renewed."""
        return self.lease_ns // 4
