"""Where the blocking parts of a transfer run: in the caller's executor, or in place."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TypeVar

ResultT = TypeVar("ResultT")


async def run_in(executor: Executor | None, work: Callable[[], ResultT]) -> ResultT:
    """Run the work in the executor, or at once on the loop if there is none.

    Work that has begun runs to its end even if the caller is cancelled: give an executor of one
    thread if what it touches is freed afterwards, and free it on the same thread.
    """
    if executor is None:
        return work()
    return await asyncio.get_running_loop().run_in_executor(executor, work)
