"""Asks a running engine step to end at its next safepoint.

A signal names its step, so that one which comes after the last safepoint of that step can never
stop the next one.
"""


class YieldSignal:
    """Set by the thread that decides, read by the one that steps.

    A single integer is replaced and read, so no lock is needed.
    """

    def __init__(self) -> None:
        self._step_id: int | None = None

    def request(self, step_id: int) -> None:
        """Ask this step to end; asking again, or for a step that is over, changes nothing."""
        self._step_id = step_id

    def is_requested(self, step_id: int) -> bool:
        """Whether this step was asked to end."""
        return self._step_id == step_id
