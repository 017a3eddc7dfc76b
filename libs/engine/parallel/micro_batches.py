"""Cuts a step's work into micro-batches, so that the stages of a replica work at once; pure.

    stage 0   | a | b |
    stage 1       | a | b |

Every rank cuts the same plan the same way, so nothing need be said about it.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Final

from libs.engine.steps import PlanEntry

MICRO_BATCH_TOKENS_MIN: Final = 32
"""Fewer rows cost nearly as much as these, because the weights are read for them all the same. With
a cost of a + b rows and two stages, two halves pay above 2a / b rows: 54 by the table in `linear`.
"""

MicroBatch = tuple[PlanEntry, ...]


def micro_batches(
    entries: Sequence[PlanEntry], *, batches_max: int, tokens_min: int, block_tokens: int
) -> tuple[MicroBatch, ...]:
    """Cut into parts of equal tokens, at least `tokens_min` each if there are several.

    A sequence that lies across a cut goes on in the next part, whose attention reads what this one
    wrote: each stage computes the parts in order. Decodes stay before prefills.
    """
    tokens = sum(len(entry.token_ids) for entry in entries)
    count = max(1, min(batches_max, tokens // tokens_min))
    if count == 1:
        return (tuple(entries),)
    edges = [index * tokens // count for index in range(count + 1)]
    batches: list[list[PlanEntry]] = [[] for _ in range(count)]
    first = 0
    for entry in entries:
        stop = first + len(entry.token_ids)
        for batch, (start_edge, stop_edge) in zip(batches, pairwise(edges), strict=True):
            start, end = max(first, start_edge), min(stop, stop_edge)
            if start < end:
                batch.append(_part(entry, start - first, end - first, block_tokens=block_tokens))
        first = stop
    return tuple(map(tuple, batches))


def _part(entry: PlanEntry, start: int, stop: int, *, block_tokens: int) -> PlanEntry:
    if stop - start == len(entry.token_ids):
        return entry
    blocks = -(-(entry.start_position + stop) // block_tokens)
    return replace(
        entry,
        token_ids=entry.token_ids[start:stop],
        start_position=entry.start_position + start,
        block_table=entry.block_table[:blocks],
        is_sampling=entry.is_sampling and stop == len(entry.token_ids),
        tokens_scored=max(0, min(entry.tokens_scored, stop) - start),
    )
