"""What every source is to the watcher."""

from typing import Protocol

from services.preemption_watcher.options import SourceOptions
from services.preemption_watcher.readings import Observation


class NoticeSource(Protocol):
    """Somebody who knows of a node's end before it comes."""

    @property
    def options(self) -> SourceOptions:
        """Its name and how it is polled."""

    async def poll(self) -> Observation:
        """Return what holds now; may wait for a change where the cloud lets one wait.

        Raises: Unavailable if the source does not answer or refuses; ContractViolation if nothing
        of its answer can be understood.
        """

    async def confirm(self, notice_id: str) -> None:
        """Tell the cloud that nothing is left on the node; called only if `options.can_confirm`.

        Raises: Unavailable if it did not take it; ContractViolation if it must not be told.
        """

    async def close(self) -> None:
        """Give up connections; a poll under way is cancelled before."""
