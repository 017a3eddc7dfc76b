"""The line of those whom no worker has room for: higher priority first, then who came first."""

from bisect import bisect_left, insort
from collections.abc import Iterator


class WaitingLine:
    """Requests in the order in which they are to be placed; as long as who fills it allows."""

    def __init__(self) -> None:
        self._places: list[tuple[int, int, str]] = []
        self._place_of: dict[str, tuple[int, int, str]] = {}

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._place_of

    def __iter__(self) -> Iterator[str]:
        """Iterate over the request ids as they stand now; the line may change meanwhile."""
        return iter([request_id for _, _, request_id in self._places])

    def add(self, request_id: str, *, priority: int, arrived_at_ns: int) -> None:
        """Let a request wait, unless it does; what came back stands where it would have stood."""
        if request_id not in self._place_of:
            place = (-priority, arrived_at_ns, request_id)
            self._place_of[request_id] = place
            insort(self._places, place)

    def discard(self, request_id: str) -> None:
        """The request waits no more, if it did."""
        place = self._place_of.pop(request_id, None)
        if place is not None:
            del self._places[bisect_left(self._places, place)]
