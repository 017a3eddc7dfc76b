"""The worker's shell on the in-memory bus, with an engine that the test can hold up or break."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from libs.contracts import subjects
from libs.contracts.preemption import NoticeKind, NoticeWithdrawn, PreemptionNotice
from libs.contracts.sessions import RefuseReason, SessionRefused, SessionStarted
from libs.contracts.wire import encode
from libs.engine.requests import SamplingOptions, SequenceRequest, StopOptions
from libs.engine.scheduler import Scheduler, SchedulerOptions
from libs.engine.scheduling.coserve import Coserve, CoserveOptions
from libs.engine.simulated_runner import SimulatedRunner, simulated_tokens
from libs.engine.steps import StepPlan, StepResult
from libs.kernel.errors import EXIT_INVARIANT_VIOLATION
from libs.kernel.units import NS_PER_MS, NS_PER_S
from libs.runtime.clock import SystemClock
from libs.runtime.memory_bus import MemoryBus
from libs.runtime.memory_hub import MemoryHub
from libs.runtime.notice_socket import NoticeListener, NoticeServer
from libs.runtime.process import run_service
from services.gpu_worker.commands import EXIT_ENGINE_FAILED
from services.gpu_worker.core import WorkerCore
from services.gpu_worker.engine_thread import EngineThread
from services.gpu_worker.options import WorkerOptions
from services.gpu_worker.positions import SOLO_REPLICA_ID
from services.gpu_worker.shell import NodeNotices, WorkerShell
from services.gpu_worker.worker_metrics import worker_metrics

VOCABULARY = 500
ENGINE = SchedulerOptions(
    step_tokens_max=64,
    sequences_max=8,
    block_tokens=4,
    blocks_total=64,
    context_tokens_max=128,
    eos_token_ids=frozenset({0}),
)


@dataclass
class GatedRunner:
    """A simulated engine behind a gate."""

    inner: SimulatedRunner = field(
        default_factory=lambda: SimulatedRunner(
            vocabulary_size=VOCABULARY, eos_token_ids=ENGINE.eos_token_ids
        )
    )
    gate: threading.Event = field(default_factory=threading.Event)
    threads: set[str] = field(default_factory=set)
    is_broken: bool = False

    def __post_init__(self) -> None:
        self.gate.set()

    def run(self, plan: StepPlan) -> StepResult:
        self.threads.add(threading.current_thread().name)
        assert self.gate.wait(timeout=30), "the test never opened the gate"
        if self.is_broken:
            raise RuntimeError("the engine is broken")
        return self.inner.run(plan)

    def request_yield(self, step_id: int) -> None:
        """Asked from another thread: what waits at the gate is over now, without its work."""
        self.inner.request_yield(step_id)
        self.gate.set()


@dataclass
class Fleet:
    """One worker in this process, and the test's router."""

    hub: MemoryHub
    runner: GatedRunner
    core: WorkerCore
    shell: WorkerShell
    router: Any
    stopping: asyncio.Event
    running: asyncio.Task[int]


def an_engine(runner: GatedRunner) -> EngineThread:
    executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")
    engine = EngineThread(SystemClock(), executor)
    engine.add(SOLO_REPLICA_ID, runner)
    return engine


@asynccontextmanager
async def a_fleet(
    router_end: Callable[..., Any],
    *,
    step_timeout_ns: int = 30 * NS_PER_S,
    notices: NodeNotices | None = None,
    engine: SchedulerOptions = ENGINE,
    **changes: Any,
) -> AsyncIterator[Fleet]:
    hub = MemoryHub()
    runner = GatedRunner()
    options = WorkerOptions(
        worker_id="worker-a",
        alias="tide",
        process_id=1,
        vocabulary_size=VOCABULARY,
        engine=engine,
        report_interval_ns=20 * NS_PER_MS,
        resend_after_ns=100 * NS_PER_MS,
        **changes,
    )
    core = WorkerCore(options, Scheduler(engine))
    shell = WorkerShell(
        worker_id=options.worker_id,
        core=core,
        engine=an_engine(runner),
        bus=MemoryBus(hub),
        clock=SystemClock(),
        step_timeout_ns=step_timeout_ns,
        notices=notices,
    )
    router = router_end(MemoryBus(hub), router_id="router-a", alias="tide")
    stopping = asyncio.Event()
    async with router.listening():
        running = asyncio.create_task(shell.run(stopping))
        await router.announced()
        try:
            yield Fleet(hub, runner, core, shell, router, stopping, running)
        finally:
            runner.gate.set()
            stopping.set()
            await asyncio.wait([running])


def undisturbed(max_tokens: int = 16) -> list[int]:
    request = SequenceRequest(
        sequence_id="reference",
        prompt_token_ids=(3, 14, 15, 92, 65),
        sampling=SamplingOptions(),
        stop=StopOptions(max_tokens=max_tokens, ignore_eos=True),
    )
    return list(
        simulated_tokens(
            request,
            vocabulary_size=VOCABULARY,
            eos_token_ids=ENGINE.eos_token_ids,
            context_tokens_max=ENGINE.context_tokens_max,
        )
    )


async def test_a_session_is_started_streamed_and_forgotten(router_end: Callable[..., Any]) -> None:
    async with a_fleet(router_end) as fleet:
        await fleet.router.start()
        assert isinstance(await fleet.router.until_answer(), SessionStarted)
        assert await fleet.router.until_finished() == undisturbed()
        await fleet.router.until_report(
            lambda report: report.blocks_free == 64 and report.tokens_generated == 16
        )
        await fleet.router.acknowledge(16, is_resend_wanted=True)
        answer = await fleet.router.until_answer()
        assert answer.reason is RefuseReason.UNKNOWN_SESSION


async def test_the_engine_steps_on_one_thread_of_its_own(router_end: Callable[..., Any]) -> None:
    async with a_fleet(router_end) as fleet:
        await fleet.router.start()
        await fleet.router.until_finished()
        [name] = fleet.runner.threads
        assert name.startswith("engine")


async def test_reports_and_answers_go_on_while_the_engine_is_in_a_step(
    router_end: Callable[..., Any],
) -> None:
    async with a_fleet(router_end) as fleet:
        fleet.runner.gate.clear()
        await fleet.router.start("long")
        beat = fleet.router.reports[-1].beat
        await fleet.router.until_report(lambda report: report.beat >= beat + 5)
        await fleet.router.start("short")
        assert isinstance(await fleet.router.until_answer("short"), SessionStarted)
        fleet.runner.gate.set()
        await fleet.router.until_finished("long")
        await fleet.router.until_finished("short")


async def test_a_step_in_the_engine_is_given_up_for_an_online_session(
    router_end: Callable[..., Any],
) -> None:
    coserve = CoserveOptions(policy=Coserve.CONSERVE, ttft_slo_ns=1)
    async with a_fleet(router_end, engine=replace(ENGINE, layers=16, coserve=coserve)) as fleet:
        fleet.runner.gate.clear()
        await fleet.router.start("offline", priority=-10)
        await fleet.router.until_answer("offline")
        # Nobody opens the gate but the one who asks the step to yield.
        await fleet.router.start("online")
        assert await fleet.router.until_finished("online") == undisturbed()
        assert await fleet.router.until_finished("offline") == undisturbed()
        report = await fleet.router.until_report(lambda report: report.steps_yielded > 0)
        assert report.steps_yielded == 1
        assert report.tokens_yielded > 0


async def test_malformed_messages_are_counted_and_harm_nobody(
    router_end: Callable[..., Any],
) -> None:
    async with a_fleet(router_end) as fleet:
        for payload in (b"", b"\xc1", b"{", b'{"type": "nonsense.v1"}', b"\x93\x01\x02\x03"):
            await fleet.router.send_bytes(payload)
        await fleet.router.start()
        assert await fleet.router.until_finished() == undisturbed()
        assert fleet.shell.actor.events_refused == 5


async def test_what_the_broker_lost_is_sent_again_when_it_is_back(
    router_end: Callable[..., Any],
) -> None:
    async with a_fleet(router_end) as fleet:
        fleet.runner.gate.clear()
        await fleet.router.start()
        await fleet.router.until_answer()
        fleet.hub.is_reachable = False
        fleet.runner.gate.set()
        async with asyncio.timeout(10):
            while fleet.shell.messages_dropped < 16:
                await asyncio.sleep(0.01)
        assert fleet.router.steps == []
        fleet.hub.is_reachable = True
        assert await fleet.router.until_finished() == undisturbed()


async def test_a_broken_engine_sends_its_sessions_away_and_ends_the_process(
    router_end: Callable[..., Any],
) -> None:
    async with a_fleet(router_end) as fleet:
        fleet.runner.is_broken = True
        await fleet.router.start()
        await fleet.router.until(
            lambda: any(isinstance(answer, SessionRefused) for answer in fleet.router.answers)
        )
        refusal = await fleet.router.until_answer()
        assert refusal.reason is RefuseReason.ENGINE_ERROR
        assert "the engine is broken" in refusal.message
        assert await fleet.running == EXIT_ENGINE_FAILED


async def test_an_engine_that_hangs_in_a_step_counts_as_broken(
    router_end: Callable[..., Any],
) -> None:
    async with a_fleet(router_end, step_timeout_ns=50 * NS_PER_MS) as fleet:
        fleet.runner.gate.clear()
        await fleet.router.start()
        await fleet.router.until(
            lambda: any(isinstance(answer, SessionRefused) for answer in fleet.router.answers)
        )
        assert (await fleet.router.until_answer()).reason is RefuseReason.ENGINE_ERROR
        assert await fleet.running == EXIT_ENGINE_FAILED


async def test_a_worker_told_to_stop_finishes_what_it_can_and_ends_well(
    router_end: Callable[..., Any],
) -> None:
    async with a_fleet(router_end) as fleet:
        await fleet.router.start()
        await fleet.router.until_tokens(1)
        fleet.stopping.set()
        assert await fleet.router.until_finished() == undisturbed()
        assert await fleet.running == 0
        assert fleet.router.reports[-1].is_draining


async def test_a_worker_told_to_stop_sends_away_what_takes_too_long(
    router_end: Callable[..., Any],
) -> None:
    async with a_fleet(router_end, drain_ns_max=50 * NS_PER_MS) as fleet:
        fleet.router.is_acknowledging = False
        await fleet.router.start()
        await fleet.router.until_finished()
        fleet.router.answers.clear()
        fleet.stopping.set()
        refusal = await fleet.router.until_answer()
        assert refusal.reason is RefuseReason.DRAINING
        assert await fleet.running == 0


async def test_the_metrics_show_what_the_worker_reports(router_end: Callable[..., Any]) -> None:
    async with a_fleet(router_end) as fleet:
        await fleet.router.start()
        await fleet.router.until_finished()
        await fleet.router.until_report(lambda report: report.tokens_generated == 16)
        metrics = worker_metrics(
            fleet.core,
            messages_dropped=lambda: fleet.shell.messages_dropped,
            messages_refused=lambda: fleet.shell.actor.events_refused,
        )
        shown = metrics.exposition().decode()
        assert "tideserve_worker_tokens_generated_total 16.0" in shown
        assert "tideserve_worker_sessions_started_total 1.0" in shown
        assert "tideserve_worker_messages_refused_total 0.0" in shown


def a_notice(grace_ms: int) -> PreemptionNotice:
    return PreemptionNotice(
        notice_id="n-1",
        node_id="node-a",
        kind=NoticeKind.PREEMPTION,
        source="manual",
        observed_at_unix_ns=1,
        grace_ns=grace_ms * NS_PER_MS,
    )


async def test_a_notice_over_the_nodes_socket_needs_no_broker_to_send_sessions_away(
    router_end: Callable[..., Any], tmp_path: Path
) -> None:
    path = tmp_path / "node.sock"
    server = NoticeServer(path, on_connected=lambda _number: None)
    await server.start()
    notices = NodeNotices(node_id="node-a", from_node=NoticeListener(path))
    try:
        async with a_fleet(
            router_end, notices=notices, node_id="node-a", grace_reserve_ns=200 * NS_PER_MS
        ) as fleet:
            await fleet.router.start("r", max_tokens=100)
            assert isinstance(await fleet.router.until_answer("r"), SessionStarted)
            fleet.runner.gate.clear()
            while not server.connections:
                await asyncio.sleep(0.005)
            server.send((a_notice(500),))
            report = await fleet.router.until_report(lambda report: report.is_draining)
            assert 0 < report.grace_left_ms <= 500
            await fleet.router.until_report(lambda report: report.grace_left_ms <= 200)
            refusal = await fleet.router.until_answer("r")
            assert (refusal.reason, refusal.target_worker_id) == (RefuseReason.MOVED, "")
            fleet.runner.gate.set()
            assert not fleet.running.done(), "it waits to be ended with its node"
    finally:
        await server.stop()


async def test_a_notice_over_the_bus_is_heard_and_can_be_withdrawn(
    router_end: Callable[..., Any],
) -> None:
    notices = NodeNotices(node_id="node-a")
    async with a_fleet(router_end, notices=notices, node_id="node-a") as fleet:
        bus = MemoryBus(fleet.hub)
        await bus.publish(subjects.notice("node-a"), encode(a_notice(60_000)))
        await fleet.router.until_report(lambda report: report.is_draining)
        withdrawn = NoticeWithdrawn(
            notice_id="n-1", node_id="node-a", kind=NoticeKind.PREEMPTION, source="manual"
        )
        await bus.publish(subjects.notice("node-a"), b"no notice at all")
        await bus.publish(subjects.notice("node-a"), encode(withdrawn))
        await fleet.router.until_report(lambda report: not report.is_draining)
        await fleet.router.start("r")
        assert len(await fleet.router.until_finished("r")) == 16


def test_a_broken_invariant_ends_the_process_with_its_own_exit_code() -> None:
    class BrokenCore(WorkerCore):
        def handle(self, event: Any, *, now_ns: int) -> Any:
            super().handle(event, now_ns=now_ns)
            scheduler.account(StepResult(step_id=0, sampled=()), now_ns=0)

    scheduler = Scheduler(ENGINE)

    async def serve(stopping: asyncio.Event) -> None:
        options = WorkerOptions(
            worker_id="worker-a", alias="tide", process_id=1, vocabulary_size=9, engine=ENGINE
        )
        shell = WorkerShell(
            worker_id="worker-a",
            core=BrokenCore(options, scheduler),
            engine=an_engine(GatedRunner()),
            bus=MemoryBus(MemoryHub()),
            clock=SystemClock(),
        )
        await shell.run(stopping)

    assert run_service(serve, name="gpu-worker") == EXIT_INVARIANT_VIOLATION
