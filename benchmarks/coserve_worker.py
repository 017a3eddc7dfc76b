"""One worker in this process, as the gpu_worker service runs it, and the router that it serves.

The engine is loaded once; every slice gets a worker core, a scheduler and a bus of its own around
it, so that no policy finds what another left behind. Tokens are timed where a router would get
them: when the step's message arrives over the bus in memory.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Final, TypeVar

from benchmarks.coserve_rows import Overheads, RequestTimes, SliceResult, Slos
from benchmarks.coserve_simulated import ANSWERS_NS_MAX, OFFLINE_OPEN, SETTLE_NS, Variant
from libs.contracts import subjects
from libs.contracts.sessions import (
    ROUTER_CONTROL,
    AcknowledgeTokens,
    EndSession,
    SessionRefused,
    TokenReceipt,
    ToWorker,
)
from libs.contracts.token_step import SessionTokens, unpack_step
from libs.contracts.wire import encode
from libs.engine.scheduler import Scheduler
from libs.engine.scheduling.tally import CoserveTally
from libs.kernel.units import NS_PER_S, seconds
from libs.policy.latency_model import LatencyModel
from libs.runtime.bus import Subscription
from libs.runtime.clock import SystemClock
from libs.runtime.memory_bus import MemoryBus
from libs.runtime.memory_hub import MemoryHub
from services.gpu_worker.config import WorkerConfig
from services.gpu_worker.core import WorkerCore
from services.gpu_worker.engine_setup import WarmEngine, start_engine, worker_options
from services.gpu_worker.engine_thread import EngineThread
from services.gpu_worker.host_copies import HostCopies
from services.gpu_worker.positions import SOLO_REPLICA_ID
from services.gpu_worker.shell import WorkerShell
from services.simulator.coserve.requests import (
    OFFLINE_PRIORITY,
    ONLINE_PRIORITY,
    ROUTER_ID,
    CoserveRequest,
)

CountersT = TypeVar("CountersT", CoserveTally, Overheads)

WORKER_ID: Final = "worker"
DRAIN_TIMEOUT_S: Final = 120.0


class SharedEngine:
    """One loaded model, on the thread that loaded it."""

    def __init__(self, config: WorkerConfig) -> None:
        self.config = config
        self.clock = SystemClock()
        self.executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")
        self.warm: WarmEngine = self.executor.submit(start_engine, config).result()

    @property
    def vocabulary_size(self) -> int:
        """Tokens that prompts may have."""
        return self.warm.loaded.config.vocabulary_size

    def close(self) -> None:
        """End its thread."""
        self.executor.shutdown()

    def overheads(self, worker: "Worker") -> Overheads:
        """Return what its counters say since the engine started."""
        safepoints = self.warm.loaded.runner.safepoints.counters
        checkpointing = worker.core.checkpointing
        return Overheads(
            safepoint_step_ns=safepoints.step_ns,
            safepoint_check_ns=safepoints.check_ns,
            stepping_ns=checkpointing.stepping_ns,
            copying_ns=checkpointing.copying_ns,
        )

    def worker(
        self, variant: Variant, *, slos: Slos, latency: LatencyModel, bus: MemoryBus
    ) -> "Worker":
        """Return a worker that has done nothing yet."""
        loaded = self.warm.loaded
        options = variant.engine(loaded.scheduler_options, slos=slos, latency=latency)
        core = WorkerCore(
            worker_options(
                replace(self.config, checkpoints=variant.checkpoints),
                worker_id=WORKER_ID,
                process_id=1,
                vocabulary_size=self.vocabulary_size,
                engine=options,
                can_hold_to_schema=False,
                room=self.warm.host_room,
            ),
            Scheduler(options),
        )
        engine_thread = EngineThread(self.clock, self.executor)
        engine_thread.add(SOLO_REPLICA_ID, loaded.runner)
        copies = HostCopies(self.clock, threads=self.config.threads)
        if self.warm.host_memory is not None:
            copies.add(SOLO_REPLICA_ID, self.warm.host_memory)
        shell = WorkerShell(
            worker_id=WORKER_ID,
            core=core,
            engine=engine_thread,
            bus=bus,
            clock=self.clock,
            copies=copies,
        )
        return Worker(core=core, shell=shell, copies=copies)


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """The parts of a worker that a slice needs."""

    core: WorkerCore
    shell: WorkerShell
    copies: HostCopies


async def run_slice(
    engine: SharedEngine,
    variant: Variant,
    *,
    online: Sequence[CoserveRequest],
    offline: Iterator[CoserveRequest] | None,
    duration_ns: int,
    slos: Slos,
    latency: LatencyModel,
) -> SliceResult:
    """Serve a slice until its time is over and all its online requests have their answers, or
    the time for that is over, too."""
    hub = MemoryHub()
    worker = engine.worker(variant, slos=slos, latency=latency, bus=MemoryBus(hub))
    router = SliceRouter(MemoryBus(hub), alias=engine.config.alias_served, offline=offline)
    stopping = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        await router.open(tasks)
        serving = tasks.create_task(worker.shell.run(stopping))
        await router.until_announced()
        await router.fill_backlog()
        await asyncio.sleep(seconds(SETTLE_NS))
        before = replace(worker.core.tally)
        overheads_before = engine.overheads(worker)
        started_at_ns = engine.clock.now_ns()
        await router.send_online(online, clock=engine.clock, started_at_ns=started_at_ns)
        await _sleep_until(started_at_ns + duration_ns, clock=engine.clock)
        await router.until_answered()
        ended_at_ns = engine.clock.now_ns()
        after = replace(worker.core.tally)
        overheads = engine.overheads(worker)
        await router.end_all(now_ns=ended_at_ns)
        stopping.set()
        async with asyncio.timeout(DRAIN_TIMEOUT_S):
            await serving
        await router.close()
    worker.copies.close()
    return SliceResult(
        requests=tuple(router.times[request.request_id] for request in online),
        tally=_difference(before, after),
        duration_ns=ended_at_ns - started_at_ns,
        overheads=_difference(overheads_before, overheads),
    )


class SliceRouter:
    """Starts sessions, keeps the offline backlog full, times tokens and acknowledges them."""

    def __init__(
        self, bus: MemoryBus, *, alias: str, offline: Iterator[CoserveRequest] | None
    ) -> None:
        self.times: dict[str, RequestTimes] = {}
        self._bus = bus
        self._clock = SystemClock()
        self._alias = alias
        self._offline = offline
        self._offline_open: set[str] = set()
        self._next_index: dict[str, int] = {}
        self._unanswered: set[str] = set()
        self._is_answered = asyncio.Event()
        self._is_announced = asyncio.Event()
        self._subscriptions: list[Subscription] = []

    async def open(self, tasks: asyncio.TaskGroup) -> None:
        """Hear what the worker says."""
        heard = {
            subjects.router_tokens(ROUTER_ID): self._tokens_came,
            subjects.router_control(ROUTER_ID): self._answer_came,
            subjects.worker_report(WORKER_ID): self._report_came,
        }
        for subject, handle in heard.items():
            subscription = await self._bus.subscribe(subject)
            self._subscriptions.append(subscription)
            tasks.create_task(self._read(subscription, handle))

    async def end_all(self, *, now_ns: int) -> None:
        """End what is left of the backlog, and online requests that were not answered in time."""
        self._offline = None
        for request_id in sorted(self._unanswered):
            self.times[request_id].cut_off_at_ns = now_ns
        for request_id in sorted(self._offline_open | self._unanswered):
            await self._send(EndSession(request_id=request_id, session_epoch=1))

    async def close(self) -> None:
        """Hear nothing more."""
        for subscription in self._subscriptions:
            await subscription.close()

    async def until_announced(self) -> None:
        """Wait until the worker listens; what was sent before would be lost."""
        await self._is_announced.wait()

    async def fill_backlog(self) -> None:
        """Start offline sessions until enough are open."""
        while self._offline is not None and len(self._offline_open) < OFFLINE_OPEN:
            request = next(self._offline)
            self._offline_open.add(request.request_id)
            await self._start(request, priority=OFFLINE_PRIORITY)

    async def send_online(
        self, requests: Sequence[CoserveRequest], *, clock: SystemClock, started_at_ns: int
    ) -> None:
        """Start each session when it arrives."""
        self._unanswered.update(request.request_id for request in requests)
        self._note_answers()
        for request in requests:
            arrival_ns = started_at_ns + request.arrival_ns
            await _sleep_until(arrival_ns, clock=clock)
            self.times[request.request_id] = RequestTimes(arrival_ns=arrival_ns)
            await self._start(request, priority=ONLINE_PRIORITY)

    async def until_answered(self) -> None:
        """Wait until every online request has its last token, but not for ever."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds(ANSWERS_NS_MAX)):
                await self._is_answered.wait()

    async def _start(self, request: CoserveRequest, *, priority: int) -> None:
        self._next_index[request.request_id] = 0
        await self._send(request.start(alias=self._alias, priority=priority))

    async def _send(self, message: ToWorker) -> None:
        await self._bus.publish(subjects.worker_control(WORKER_ID), encode(message))

    async def _read(
        self, subscription: Subscription, handle: Callable[[bytes], Awaitable[None]]
    ) -> None:
        async for message in subscription:
            await handle(message.payload)

    async def _tokens_came(self, payload: bytes) -> None:
        now_ns = self._clock.now_ns()
        receipts = tuple(self._take(entry, now_ns=now_ns) for entry in unpack_step(payload).entries)
        await self._send(AcknowledgeTokens(router_id=ROUTER_ID, receipts=receipts))
        await self.fill_backlog()

    def _take(self, entry: SessionTokens, *, now_ns: int) -> TokenReceipt:
        request_id = entry.request_id
        known = self._next_index.get(request_id, 0)
        next_index = max(known, entry.first_index + len(entry.token_ids))
        self._next_index[request_id] = next_index
        times = self.times.get(request_id)
        if times is not None and times.cut_off_at_ns is None:
            times.token_at_ns += [now_ns] * (next_index - known)
        if entry.finish_reason is not None:
            self._offline_open.discard(request_id)
            self._unanswered.discard(request_id)
            self._note_answers()
        return TokenReceipt(request_id=request_id, session_epoch=1, next_index=next_index)

    def _note_answers(self) -> None:
        if self._unanswered:
            self._is_answered.clear()
        else:
            self._is_answered.set()

    async def _report_came(self, _: bytes) -> None:
        self._is_announced.set()

    async def _answer_came(self, payload: bytes) -> None:
        answer = ROUTER_CONTROL.decode(payload)
        if isinstance(answer, SessionRefused) and answer.request_id in self._unanswered:
            raise RuntimeError(f"{answer.request_id} was refused: {answer.message}")


async def _sleep_until(at_ns: int, *, clock: SystemClock) -> None:
    left_ns = at_ns - clock.now_ns()
    if left_ns > 0:
        await asyncio.sleep(left_ns / NS_PER_S)


def _difference(before: CountersT, after: CountersT) -> CountersT:
    begun = asdict(before)
    return type(after)(**{name: value - begun[name] for name, value in asdict(after).items()})
