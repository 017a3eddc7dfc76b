"""Half-open intervals of integers: of layers, of heads, of rows along a shard axis."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from libs.kernel.core import require


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """The integers from `start` up to, not including, `stop`; never empty."""

    start: int
    stop: int

    def __post_init__(self) -> None:
        require(0 <= self.start < self.stop, f"no span: {self.start} to {self.stop}")

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.start, self.stop))

    def covers(self, other: "Span") -> bool:
        """Whether all of `other` lies inside."""
        return self.start <= other.start and other.stop <= self.stop

    def overlap(self, other: "Span") -> "Span | None":
        """Return what both have in common."""
        start, stop = max(self.start, other.start), min(self.stop, other.stop)
        return Span(start, stop) if start < stop else None

    def cut_at(self, others: Iterable["Span"]) -> tuple["Span", ...]:
        """Split at every border of the others, so that each part lies wholly in or out of each."""
        borders = {border for other in others for border in (other.start, other.stop)}
        inside = sorted(border for border in borders if self.start < border < self.stop)
        edges = (self.start, *inside, self.stop)
        return tuple(Span(start, stop) for start, stop in pairwise(edges))


def joined(spans: Iterable[Span]) -> tuple[Span, ...]:
    """Return the same integers in as few spans as possible, ascending."""
    result: list[Span] = []
    for span in sorted(spans):
        if result and span.start <= result[-1].stop:
            result[-1] = Span(result[-1].start, max(result[-1].stop, span.stop))
        else:
            result.append(span)
    return tuple(result)


def without(span: Span, held: Sequence[Span]) -> tuple[Span, ...]:
    """Return the parts of `span` that none of `held` covers, ascending."""
    parts = span.cut_at(held)
    return joined(part for part in parts if not any(other.covers(part) for other in held))
