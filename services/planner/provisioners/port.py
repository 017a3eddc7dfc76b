"""What a provisioner does for the leading planner."""

from typing import Protocol

from services.planner.commands import PublishCapacity


class Provisioner(Protocol):
    """Brings the nodes that exist towards those that are wanted."""

    async def provide(self, capacity: PublishCapacity) -> None:
        """Do the next thing, if there is one. It is asked again and again, with the whole wish.

        Raises: Unavailable where whoever has the nodes does not answer; the next wish is the retry.
        """

    async def close(self) -> None:
        """Give back what it holds of the world."""


class NoProvisioner:
    """The fleet is what it is: the wish is only published, for people or for another program."""

    async def provide(self, capacity: PublishCapacity) -> None:
        """Do nothing."""

    async def close(self) -> None:
        """Nothing is held."""
