"""How much may be copied beside the engine's steps without slowing them noticeably; pure.

Copies share memory and cores with the engine. Each step earns credit, a share of its own duration;
each copy spends as long as it took. So in the long run copies take no more than that share of the
time in which the engine runs.
Source: ConServe's adaptive checkpointing; the rule is ours.
"""

from libs.kernel.units import NS_PER_MS

CREDIT_NS_MAX = 50 * NS_PER_MS
"""Credit of long quiet is bounded: it would be spent all at once."""


class CopyPace:
    """The credit of one engine."""

    def __init__(self, *, share_max: float) -> None:
        self._share_max = share_max
        self._credit_ns = CREDIT_NS_MAX
        self.copying_ns = 0
        """Time of all copies, for metrics."""
        self.stepping_ns = 0
        """Time of all steps, for metrics."""

    def step_ended(self, duration_ns: int) -> None:
        """Earn."""
        self.stepping_ns += duration_ns
        earned_ns = round(duration_ns * self._share_max)
        self._credit_ns = min(CREDIT_NS_MAX, self._credit_ns + earned_ns)

    def copy_ended(self, duration_ns: int) -> None:
        """Spend; a copy that took longer than expected leaves a debt."""
        self.copying_ns += duration_ns
        self._credit_ns -= duration_ns

    def items_allowed(self, *, item_ns: float, copy_ns: int) -> int:
        """Return how many items, each of which takes so long, may be copied at once now."""
        return max(0, int((self._credit_ns - copy_ns) / max(1.0, item_ns)))
