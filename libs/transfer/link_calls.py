"""What the calls of every connection have in common: time limits, closing, and what a failure does.

    open --close(), or a call fails--> closed --the last call has returned--> released

A call that fails in any way leaves half a message behind, on the wire or in memory; the connection
is of no use after that and is closed. `interrupt` must make pending calls fail soon; `release`
frees what they use, and runs once, when none is left.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Literal

from libs.kernel.core import require
from libs.kernel.errors import ContractViolation
from libs.kernel.units import seconds
from libs.transfer.transport import ConnectionLost, PeerSilent

Direction = Literal["send", "receive"]


class LinkCalls:
    """Guards the calls of one connection."""

    def __init__(
        self,
        *,
        peer_address: str,
        interrupt: Callable[[], None],
        broken_by: tuple[type[Exception], ...],
        release: Callable[[], None] | None = None,
    ) -> None:
        self._peer_address = peer_address
        self._interrupt = interrupt
        self._release = release
        self._broken_by = broken_by
        self._running: set[Direction] = set()
        self._is_closed = False

    @property
    def is_closed(self) -> bool:
        """Whether a further call would raise ConnectionLost."""
        return self._is_closed

    def close(self) -> None:
        """Let pending calls fail, and refuse further ones."""
        if self._is_closed:
            return
        self._is_closed = True
        self._interrupt()
        self._release_if_idle()

    @asynccontextmanager
    async def call(self, direction: Direction, *, timeout_ns: int | None) -> AsyncIterator[None]:
        """Run one call; whatever goes wrong closes the connection and has one of two names."""
        if self._is_closed:
            raise ConnectionLost(f"{self._peer_address}: the connection is closed")
        require(direction not in self._running, f"two tasks {direction} on one connection")
        self._running.add(direction)
        try:
            async with asyncio.timeout(None if timeout_ns is None else seconds(timeout_ns)):
                yield
        except TimeoutError as error:
            self.close()
            raise PeerSilent(f"{self._peer_address}: silent for too long ({direction})") from error
        except (asyncio.CancelledError, ContractViolation, PeerSilent):
            self.close()
            raise
        except self._broken_by as error:
            self.close()
            raise ConnectionLost(
                f"{self._peer_address}: {error or type(error).__name__}"
            ) from error
        finally:
            self._running.discard(direction)
            self._release_if_idle()

    def _release_if_idle(self) -> None:
        if self._is_closed and not self._running:
            release, self._release = self._release, None
            if release is not None:
                release()
