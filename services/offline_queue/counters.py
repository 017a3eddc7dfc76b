"""What one queue counts, for metrics and reports."""

from dataclasses import dataclass


@dataclass(slots=True)
class QueueCounters:
    """Since the start of this process."""

    lines_started: int = 0
    lines_completed: int = 0
    lines_failed: int = 0
    lines_expired: int = 0
    lines_put_off: int = 0
    parts_leased: int = 0
    parts_leased_again: int = 0
    """Of them, those that some queue had leased before: it died, gave them back or was slow."""
    parts_given_up: int = 0
