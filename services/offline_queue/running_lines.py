"""The lines that run: each a task of its own, which a dropped part or our leaving cancels."""

import asyncio

from services.offline_queue.asking import Asking, put_off
from services.offline_queue.commands import FailLine, StartLine
from services.offline_queue.events import LinePutOff, LineStored
from services.offline_queue.job_runner import JobRunner, LoadedJob
from services.offline_queue.leases import Leases
from services.offline_queue.line_runner import LineRunner

LineOutcome = LineStored | LinePutOff


class RunningLines:
    """Runs leased lines and jobs; every command ends in one outcome, also if it is cancelled."""

    def __init__(
        self, leases: Leases, asking: Asking, *, lines: LineRunner, jobs: JobRunner
    ) -> None:
        self._leases = leases
        self._asking = asking
        self._lines = lines
        self._jobs = jobs
        self._tasks: dict[tuple[str, int], asyncio.Task[LineOutcome]] = {}

    async def run(self, command: StartLine | FailLine) -> LineOutcome:
        """Carry the command out, unless its part is gone or we leave."""
        if self._asking.is_leaving:
            return put_off(command)
        key = (command.part_key, command.line)
        task = asyncio.create_task(self._outcome(command))
        self._tasks[key] = task
        try:
            await asyncio.wait({task})
        finally:
            task.cancel()
            if self._tasks.get(key) is task:
                del self._tasks[key]
        return put_off(command) if task.cancelled() else task.result()

    def drop(self, part_key: str) -> None:
        """Stop the lines of a part that another queue may have by now."""
        for (held_key, _), task in list(self._tasks.items()):
            if held_key == part_key:
                task.cancel()

    async def leave(self) -> None:
        """Stop all lines and begin no other; the routers go on with them."""
        self._asking.is_leaving = True
        running = list(self._tasks.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def _outcome(self, command: StartLine | FailLine) -> LineOutcome:
        loaded = self._leases.line(command.part_key, command.line)
        if loaded is None:
            return put_off(command)
        if isinstance(loaded, LoadedJob):
            if isinstance(command, StartLine):
                return await self._jobs.run(loaded, command)
            return await self._jobs.fail(loaded, command)
        if isinstance(command, StartLine):
            return await self._lines.run(loaded, command)
        return await self._lines.fail(loaded, command)
