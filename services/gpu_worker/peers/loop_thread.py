"""Lets a thread of a transfer wait for work of the event loop."""

import asyncio
from collections.abc import Coroutine
from concurrent.futures import CancelledError

from libs.kernel.errors import Unavailable
from libs.kernel.units import NS_PER_MS, seconds


def wait_for_loop(
    work: Coroutine[None, None, None], loop: asyncio.AbstractEventLoop, *, timeout_ns: int
) -> None:
    """Run the coroutine on the loop and wait for its end; never to be called on the loop itself.

    Raises: what the coroutine raises; Unavailable if it takes too long or the loop ends.
    """
    try:
        future = asyncio.run_coroutine_threadsafe(work, loop)
    except RuntimeError as error:
        work.close()
        raise Unavailable("the worker stops", retry_after_ns=NS_PER_MS) from error
    try:
        future.result(seconds(timeout_ns))
    except TimeoutError as error:
        future.cancel()
        raise Unavailable("the engine takes too long", retry_after_ns=NS_PER_MS) from error
    except CancelledError as error:
        raise Unavailable("the worker stops", retry_after_ns=NS_PER_MS) from error
