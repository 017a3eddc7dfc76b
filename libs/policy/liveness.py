"""Who is alive, judged only while the observer itself can be heard.

Every process publishes a report at a fixed interval and hears its own echo through the broker. A
peer's silence is counted in echoes heard since its last report, never in seconds: while the broker
is away nobody hears anything, so nobody is declared dead. After such a gap every peer gets a fresh
allowance, because peers come back at different moments.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from libs.kernel.units import NS_PER_MS


@dataclass(frozen=True, slots=True, kw_only=True)
class LivenessOptions:
    """How much silence is death."""

    echoes_missed_max: int = 10
    """Reports missed in a row before a peer counts as dead: 2 s at the interval of 200 ms. A busy
    two-core machine delays a report by several hundred ms; a false death only costs a resume."""
    echoes_missed_max_unreachable: int = 2
    """The same for a peer to whom the broker could deliver nothing: its connection is closed, so
    only a reconnect in progress speaks for it."""
    outage_ns: int = 1_000 * NS_PER_MS
    """A gap this long between own echoes was the broker's or our own, not the peers'."""
    echoes_allowed_after_outage: int = 25
    """Echoes that do not count after such a gap: 5 s for a peer to reconnect."""


class EchoLiveness:
    """Counts, per peer, the own echoes since the peer was last heard."""

    def __init__(self, options: LivenessOptions) -> None:
        self._options = options
        self._echoes_missed: dict[str, int] = {}
        self._unreachable: set[str] = set()
        self._echo_at_ns: int | None = None

    def is_alive(self, peer_id: str) -> bool:
        """Whether the peer has been heard and was not declared dead since."""
        return peer_id in self._echoes_missed

    def alive(self) -> list[str]:
        """Return the living peers, sorted."""
        return sorted(self._echoes_missed)

    def observe_peer(self, peer_id: str) -> bool:
        """Note a report of the peer; return whether it was unknown or dead before."""
        missed = self._echoes_missed.get(peer_id)
        if missed is None or missed > 0:  # below 0 it still has an allowance
            self._echoes_missed[peer_id] = 0
        self._unreachable.discard(peer_id)
        return missed is None

    def observe_unreachable(self, peer_id: str) -> None:
        """Note that the broker found nobody listening on the peer's subject."""
        if peer_id in self._echoes_missed:
            self._unreachable.add(peer_id)

    def observe_echo(self, *, now_ns: int) -> list[str]:
        """Count one own echo against every peer; return those that are dead now, sorted."""
        is_outage = (
            self._echo_at_ns is not None and now_ns - self._echo_at_ns > self._options.outage_ns
        )
        self._echo_at_ns = now_ns
        if is_outage:
            self._forgive(self._echoes_missed)
            return []
        dead = []
        for peer_id in sorted(self._echoes_missed):
            self._echoes_missed[peer_id] += 1
            if self._echoes_missed[peer_id] >= self._allowance(peer_id):
                dead.append(peer_id)
        for peer_id in dead:
            self.forget(peer_id)
        return dead

    def suspects(self) -> list[str]:
        """Return the peers that missed exactly one echo more than usual: worth asking now."""
        threshold = self._options.echoes_missed_max_unreachable
        return [p for p in sorted(self._echoes_missed) if self._echoes_missed[p] == threshold]

    def forget(self, peer_id: str) -> None:
        """Drop the peer; it counts as new when it is heard again."""
        self._echoes_missed.pop(peer_id, None)
        self._unreachable.discard(peer_id)

    def _allowance(self, peer_id: str) -> int:
        if peer_id in self._unreachable:
            return self._options.echoes_missed_max_unreachable
        return self._options.echoes_missed_max

    def _forgive(self, peer_ids: Iterable[str]) -> None:
        for peer_id in list(peer_ids):
            self._echoes_missed[peer_id] = -self._options.echoes_allowed_after_outage
        self._unreachable.clear()
