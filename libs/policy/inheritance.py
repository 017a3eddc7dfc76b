"""Which replica's sessions go on where: the replicas with most decoded tokens keep theirs.

Source: SpotServe section 3.3. Old replicas are sorted by the tokens whose KV they hold and meet the
new pipelines one to one. Departs from it where the counts differ: what the paper drops, the least
loaded pipeline takes over, and a pipeline left without shares the heaviest old replica.
"""

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class EndingReplica:
    """A replica whose sessions must go elsewhere."""

    replica_id: str
    kv_tokens: int
    """Decoded or prefilled tokens whose KV it holds."""


def choose_heirs(
    ending: Sequence[EndingReplica], *, pipelines: int, drops_surplus: bool = False
) -> tuple[tuple[str, ...], ...]:
    """Return, for each new pipeline, the old replicas whose sessions it takes over.

    With `drops_surplus` only as many old replicas as pipelines are inherited, as in the paper;
    otherwise every one is, and only one that several pipelines share appears twice.
    """
    if pipelines == 0:
        return ()
    by_tokens = sorted(ending, key=lambda replica: (-replica.kv_tokens, replica.replica_id))
    heirs: list[list[str]] = [[replica.replica_id] for replica in by_tokens[:pipelines]]
    if drops_surplus:
        heirs += [[] for _ in range(pipelines - len(heirs))]
        return tuple(map(tuple, heirs))
    load = [(replica.kv_tokens, index) for index, replica in enumerate(by_tokens[:pipelines])]
    heapq.heapify(load)
    for replica in by_tokens[pipelines:]:
        tokens, index = heapq.heappop(load)
        heirs[index].append(replica.replica_id)
        heapq.heappush(load, (tokens + replica.kv_tokens, index))
    return tuple(map(tuple, heirs + _shared(by_tokens, pipelines=pipelines - len(heirs))))


def share_of(heirs: Sequence[Sequence[str]]) -> Mapping[str, int]:
    """Count by how many pipelines each old replica is inherited."""
    counts: dict[str, int] = {}
    for replica_ids in heirs:
        for replica_id in replica_ids:
            counts[replica_id] = counts.get(replica_id, 0) + 1
    return counts


def _shared(by_tokens: Sequence[EndingReplica], *, pipelines: int) -> list[list[str]]:
    """Let each pipeline left over share the replica that then has most tokens per heir."""
    loads = [
        (-replica.kv_tokens / 2, 2, replica.kv_tokens, replica.replica_id)
        for replica in by_tokens
        if replica.kv_tokens > 0
    ]
    heapq.heapify(loads)
    shared: list[list[str]] = []
    for _ in range(pipelines):
        if not loads:
            shared.append([])
            continue
        _, heirs, tokens, replica_id = heapq.heappop(loads)
        shared.append([replica_id])
        heapq.heappush(loads, (-tokens / (heirs + 1), heirs + 1, tokens, replica_id))
    return shared
