"""What the calls of every connection have in common: time limits, closing, and what a failure does.

    open --close(), or a call fails--> closed --the last call has returned--> released

A call that fails in any way leaves half a message behind, on the wire or in memory; the connection
is of no use after that and is closed. `_interrupt` must make pending calls fail soon; `_release`
frees what they use, and runs once, when none is left.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

from libs.kernel.core import require
from libs.kernel.errors import ContractViolation
from libs.kernel.units import seconds
from libs.transfer.transport import ConnectionLost, PeerSilent

Direction = Literal["send", "receive"]


class GuardedConnection(ABC):
    """A Connection but for how it sends and receives: each of these is one `call`."""

    def __init__(self, *, peer_address: str, broken_by: tuple[type[Exception], ...]) -> None:
        self._peer_address = peer_address
        self._broken_by = broken_by
        self._running: set[Direction] = set()
        self._is_closed = False
        self._is_released = False

    @property
    def peer_address(self) -> str:
        """Where the peer is, for logs."""
        return self._peer_address

    @property
    def is_closed(self) -> bool:
        """Whether either side has closed it, as far as this side knows."""
        return self._is_closed

    def close(self) -> None:
        """Let pending calls fail, and refuse further ones."""
        if self._is_closed:
            return
        self._is_closed = True
        self._interrupt()
        self._release_if_idle()

    @asynccontextmanager
    async def _call(self, direction: Direction, *, timeout_ns: int | None) -> AsyncIterator[None]:
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
        if self._is_closed and not self._running and not self._is_released:
            self._is_released = True
            self._release()

    @abstractmethod
    def _interrupt(self) -> None:
        """Make pending calls fail soon."""

    def _release(self) -> None:
        """Free what calls use, for nothing uses it any more."""
        return
