"""Lets a thread of a transfer wait for work of the event loop."""

import asyncio
from collections.abc import Coroutine
from concurrent.futures import CancelledError

from libs.kernel.errors import Unavailable
from libs.kernel.units import NS_PER_MS


def wait_for_loop(work: Coroutine[None, None, None], loop: asyncio.AbstractEventLoop) -> None:
    """Run the coroutine on the loop and wait for its end; never to be called on the loop itself.

    There is no time limit: the engine may be using memory that the caller would free. A worker ends
    when its engine hangs, and the loop with it.
    Raises: what the coroutine raises; Unavailable if the loop ends.
    """
    try:
        future = asyncio.run_coroutine_threadsafe(work, loop)
    except RuntimeError as error:
        work.close()
        raise Unavailable("the worker stops", retry_after_ns=NS_PER_MS) from error
    try:
        future.result()
    except CancelledError as error:
        raise Unavailable("the worker stops", retry_after_ns=NS_PER_MS) from error
