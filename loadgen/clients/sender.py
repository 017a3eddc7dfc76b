"""The port through which a run sends its requests."""

from typing import Protocol

from loadgen.records import Ending, Observation
from loadgen.workload import LoadRequest


class Sender(Protocol):
    """Sends requests, any number at once."""

    async def send(self, request: LoadRequest, seen: Observation) -> Ending:
        """Send the request once and read its answer to the end, noting in `seen` what comes.

        Every failure of the server or the network is an Ending; raises only for a bug of ours.
        May be cancelled at any await, and then lets go of the request.
        """
