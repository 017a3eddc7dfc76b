"""How long a change that failed waits until it is tried again."""

from services.migrator.options import MigratorOptions


class Patience:
    """Pauses that double with each failure of the same change, until another placement comes."""

    def __init__(self, options: MigratorOptions) -> None:
        self._options = options
        self._pauses: dict[str, tuple[int, int]] = {}
        """Failures, and when the pause ends; no more of them than the placement has replicas."""

    def failed(self, change: str, *, now_ns: int) -> None:
        """Note that the change came to nothing."""
        failures = self._pauses.get(change, (0, 0))[0] + 1
        pause_ns = self._options.restart_after_ns << min(failures - 1, 16)
        ends_at_ns = now_ns + min(pause_ns, self._options.restart_after_max_ns)
        self._pauses[change] = (failures, ends_at_ns)

    def allows(self, change: str, *, now_ns: int) -> bool:
        """Whether the change may be tried now."""
        return now_ns >= self._pauses.get(change, (0, now_ns))[1]

    def forget(self) -> None:
        """Another placement: whatever failed may now succeed."""
        self._pauses.clear()
