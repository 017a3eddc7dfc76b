"""KV on its way from a replica that ends to those that inherit its sessions.

In rounds while the source computes, then the rest at the stop. Each piece of work goes whole to one
heir; the heirs of a source take turns. Blocks are counted as tokens over the block size.
"""

from collections.abc import Callable, Sequence

from libs.policy.model_profile import ModelBytes
from libs.sim.world import World
from services.simulator.spot.event_log import EventLog
from services.simulator.spot.hardware import Hardware
from services.simulator.spot.replica import SimReplica
from services.simulator.spot.transfers import Traffic, kv_routes
from services.simulator.spot.work import Work

BLOCK_TOKENS = 16
OnMoved = Callable[[dict[str, int]], None]


class KvCopies:
    """Carries out the copies of all replicas."""

    def __init__(
        self, world: World, log: EventLog, *, hardware: Hardware, size: ModelBytes
    ) -> None:
        self._world = world
        self._log = log
        self._hardware = hardware
        self._size = size
        self.bytes_moved = 0

    def copy(self, source: SimReplica, targets: Sequence[SimReplica], on_done: OnMoved) -> None:
        """Copy what is there now and not copied yet, while the source goes on."""
        works = source.engine.held()
        self._send(source, targets, works, until_ns=None, on_done=on_done)

    def stop(
        self,
        source: SimReplica,
        targets: Sequence[SimReplica],
        *,
        until_ns: int | None,
        on_done: OnMoved,
    ) -> None:
        """Let the source stand still at its next boundary, then copy what the heirs lack."""

        def stand_still() -> None:
            self._log.add(source.replica_id, "stands still")
            self._send(source, targets, source.engine.held(), until_ns=until_ns, on_done=on_done)

        source.engine.stop(stand_still)

    def _send(
        self,
        source: SimReplica,
        targets: Sequence[SimReplica],
        works: Sequence[Work],
        *,
        until_ns: int | None,
        on_done: OnMoved,
    ) -> None:
        sent = [(work, source.tokens_uncopied(work)) for work in works if targets]
        traffics: dict[int, Traffic] = {}
        if sent:
            routes = kv_routes(self._size, source=source.placed, target=targets[0].placed)
            traffics = {tokens: routes.traffic(tokens) for _, tokens in sent}
        chosen: list[tuple[Work, int]] = []
        whole = Traffic()
        for work, tokens in sent:
            if not tokens:
                continue
            grown = merged(whole, traffics[tokens])
            if until_ns is None or self._ends_at_ns(grown) <= until_ns:
                whole = grown
                chosen.append((work, work.kv_tokens))
        tokens_moved = sum(source.tokens_uncopied(work) for work, _ in chosen)
        bytes_moved = sum(whole.received.values())
        tokens_missing = sum(tokens for _, tokens in sent) - tokens_moved
        duration_ns = whole.duration_ns(self._hardware)

        def arrive() -> None:
            for work, tokens in chosen:
                source.tokens_copied[work.name] = tokens
            self.bytes_moved += bytes_moved
            left = sum(source.tokens_uncopied(work) for work in source.engine.held())
            self._log.add(
                source.replica_id, "kv copied", tokens=tokens_moved, bytes=bytes_moved,
                heirs=tuple(target.replica_id for target in targets),
            )  # fmt: skip
            on_done(
                {
                    "bytes_planned": bytes_moved,
                    "bytes_moved": bytes_moved,
                    "blocks_moved": -(-tokens_moved // BLOCK_TOKENS),
                    "blocks_left": left // BLOCK_TOKENS,
                    "sessions": sum(len(work.requests) for work in works),
                    "tokens_uncopied": tokens_missing,
                    "duration_ns": duration_ns,
                }
            )

        self._world.after(duration_ns, arrive)

    def _ends_at_ns(self, traffic: Traffic) -> int:
        return self._world.now_ns + traffic.duration_ns(self._hardware)


def merged(one: Traffic, other: Traffic) -> Traffic:
    """Return the traffic of both at the same time."""
    return Traffic(
        sent=_sum(one.sent, other.sent),
        received=_sum(one.received, other.received),
        local=_sum(one.local, other.local),
        from_disk=_sum(one.from_disk, other.from_disk),
    )


def _sum(one: dict[str, int], other: dict[str, int]) -> dict[str, int]:
    names = [*one, *(name for name in other if name not in one)]
    return {name: one.get(name, 0) + other.get(name, 0) for name in names}
