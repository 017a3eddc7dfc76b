"""Sends requests in an open or a closed loop, and keeps one record of each.

Open: each request is sent at its arrival, whatever became of the ones before; how late the
generator itself was is part of every record. Closed: each of N users sends its next request when
the last one has ended. Both are bounded in requests, in time and in open streams.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from libs.kernel.errors import ConfigError
from libs.kernel.units import NS_PER_S, seconds
from libs.runtime.clock import Clock
from loadgen.clients.endings import failed
from loadgen.clients.sender import Sender
from loadgen.records import Ending, Observation, RequestRecord, RunResult
from loadgen.workload import LoadRequest

REQUESTS_MAX: Final = 1_000_000
STREAMS_OPEN_MAX: Final = 10_000
TIMED_OUT: Final = "timeout"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLimits:
    """Where a run ends, and what it may hold open."""

    requests_max: int = 100_000
    """Sends no more than this."""
    duration_ns: int | None = None
    """Sends nothing after this long; what is open then may end. None: until the arrivals end."""
    streams_open_max: int = 1_000
    """An open loop counts what arrives beyond this as unsent, rather than wait and call it load."""
    request_timeout_ns: int = 120 * NS_PER_S
    """A request that has not ended by then is cancelled and counts as failed."""

    def __post_init__(self) -> None:
        if not 1 <= self.requests_max <= REQUESTS_MAX:
            raise ConfigError(f"requests: must be between 1 and {REQUESTS_MAX}")
        if self.duration_ns is not None and self.duration_ns <= 0:
            raise ConfigError("duration: must be above 0")
        if not 1 <= self.streams_open_max <= STREAMS_OPEN_MAX:
            raise ConfigError(f"open streams: must be between 1 and {STREAMS_OPEN_MAX}")
        if self.request_timeout_ns <= 0:
            raise ConfigError("request timeout: must be above 0")


class LoadRun:
    """One run over one sender; `stop` ends the sending early."""

    def __init__(
        self,
        sender: Sender,
        *,
        limits: RunLimits,
        clock: Clock,
        on_ended: Callable[[RequestRecord], None] = lambda record: None,
    ) -> None:
        self.result = RunResult()
        self._sender = sender
        self._limits = limits
        self._clock = clock
        self._on_ended = on_ended
        self._stopping = asyncio.Event()
        self._start_ns = 0
        self._sent = 0
        self._mistake: ConfigError | None = None

    def stop(self) -> None:
        """Send nothing more; what is open may end."""
        self.result.is_interrupted = True
        self._stopping.set()

    async def open_loop(self, requests: Iterable[LoadRequest]) -> RunResult:
        """Send each request at its arrival; return when all have ended.

        Raises: ConfigError, after what is open has ended, where the requests could not be made.
        """
        self._start_ns = self._clock.now_ns()
        async with asyncio.TaskGroup() as streams:
            for request in self._made(requests):
                if self._is_over(request.arrival_ns):
                    break
                if not await self._wait_until(request.arrival_ns):
                    break
                self._sent += 1
                if self.result.streams_open >= self._limits.streams_open_max:
                    self.result.requests_unsent += 1
                    continue
                self._opened()
                streams.create_task(self._one(request, planned_at_ns=request.arrival_ns))
        return self._finished()

    async def closed_loop(
        self, requests: Iterable[LoadRequest], *, users: int, think_ns: int = 0
    ) -> RunResult:
        """Let this many users send one request after another; return when all have ended.

        Arrivals of the requests are not used. Each user pauses `think_ns` after an answer.
        Raises: ConfigError if the users do not fit into the open streams allowed, or as above.
        """
        if not 1 <= users <= self._limits.streams_open_max:
            raise ConfigError(f"users: must be between 1 and {self._limits.streams_open_max}")
        self._start_ns = self._clock.now_ns()
        shared = self._made(requests)
        async with asyncio.TaskGroup() as group:
            for _ in range(users):
                group.create_task(self._user(shared, think_ns=think_ns))
        return self._finished()

    def _made(self, requests: Iterable[LoadRequest]) -> Iterator[LoadRequest]:
        """Yield the requests; a trace that turns out wrong ends them, and is told at the end."""
        try:
            yield from requests
        except ConfigError as error:
            self._mistake = error

    async def _user(self, requests: Iterator[LoadRequest], *, think_ns: int) -> None:
        while not self._stopping.is_set() and not self._is_over(self._now_ns()):
            request = next(requests, None)
            if request is None:
                return
            self._sent += 1
            self._opened()
            await self._one(request, planned_at_ns=self._now_ns())
            if not await self._wait_until(self._now_ns() + think_ns):
                return

    async def _one(self, request: LoadRequest, *, planned_at_ns: int) -> None:
        seen = Observation()
        sent_at_ns = self._now_ns()
        ending = await self._send(request, seen)
        ended_at_ns = self._now_ns()
        token_at_ns = seen.token_at_ns
        for index in range(len(token_at_ns)):
            token_at_ns[index] -= self._start_ns
        reported = seen.output_tokens
        record = RequestRecord(
            index=request.index,
            planned_at_ns=planned_at_ns,
            sent_at_ns=sent_at_ns,
            ended_at_ns=ended_at_ns,
            token_at_ns=token_at_ns,
            prompt_tokens=seen.prompt_tokens,
            output_tokens=len(token_at_ns) if reported is None else reported,
            request_id=seen.request_id,
            ending=ending,
        )
        self.result.streams_open -= 1
        self.result.records.append(record)
        self._on_ended(record)

    async def _send(self, request: LoadRequest, seen: Observation) -> Ending:
        timeout_s = seconds(self._limits.request_timeout_ns)
        try:
            async with asyncio.timeout(timeout_s):
                return await self._sender.send(request, seen)
        except TimeoutError:
            explanation = f"not ended after {timeout_s:g} s, {len(seen.token_at_ns)} tokens came"
            return failed(TIMED_OUT, explanation)

    async def _wait_until(self, at_ns: int) -> bool:
        """Return True at this instant, False at once when the run is stopped."""
        while not self._stopping.is_set():
            left_ns = at_ns - self._now_ns()
            if left_ns <= 0:
                await asyncio.sleep(0)  # A generator that is late still lets its streams read.
                return True
            try:
                async with asyncio.timeout(seconds(left_ns)):
                    await self._stopping.wait()
            except TimeoutError:
                continue  # A timer may ring early; the clock decides.
        return False

    def _is_over(self, at_ns: int) -> bool:
        duration_ns = self._limits.duration_ns
        return self._sent >= self._limits.requests_max or (
            duration_ns is not None and at_ns >= duration_ns
        )

    def _opened(self) -> None:
        self.result.streams_open += 1
        most = max(self.result.streams_open_most, self.result.streams_open)
        self.result.streams_open_most = most

    def _finished(self) -> RunResult:
        if self._mistake is not None:
            raise self._mistake
        self.result.duration_ns = self._now_ns()
        return self.result

    def _now_ns(self) -> int:
        """Return the time since the start of the run."""
        return self._clock.now_ns() - self._start_ns
