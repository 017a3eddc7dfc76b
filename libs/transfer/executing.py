"""Where the blocking parts of a transfer run: in the caller's executor, or in place."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TypeVar

ResultT = TypeVar("ResultT")


async def run_in(executor: Executor | None, work: Callable[[], ResultT]) -> ResultT:
    """Run the work in the executor, or at once on the loop if there is none.

    A caller that is cancelled goes on only when the work has ended or will never begin: the memory
    that it reads and writes is then free for other use.
    """
    if executor is None:
        return work()
    job = executor.submit(work)
    try:
        return await asyncio.shield(asyncio.wrap_future(job))
    except asyncio.CancelledError:
        if not job.cancel():
            await asyncio.wait({asyncio.wrap_future(job)})
        raise
