"""Every stream at its bound: a typed refusal with a time to come back, and nothing lost."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from libs.client.client import ClientOptions, TideClient
from libs.client.errors import RequestRefused
from libs.client.reader_events import ReaderOptions
from libs.contracts import subjects
from libs.contracts.online import RejectReason
from libs.contracts.reports import WorkerReport
from libs.contracts.wire import encode
from libs.kernel.units import KIB, NS_PER_S, seconds
from libs.runtime.bus import Bus, StreamFull
from libs.runtime.clock import SystemClock
from libs.runtime.memory_bus import MemoryBus
from libs.runtime.memory_hub import MemoryHub
from libs.runtime.nats_bus import NatsBus
from libs.runtime.nats_server import NatsServer, ServerOptions
from services.online_router.options import RouterOptions
from services.online_router.ports import CLAIM_AGE_MAX_NS, JOURNAL_OPTIONS, JournalPort
from services.online_router.shell import RouterShell
from services.online_router.tokenization import load_tokenization

MODEL = Path(__file__).resolve().parents[3] / "models" / "tide-tiny"
JUNK = subjects.journal("somebody-else")


class Stack:
    """A router whose journal or claims are nearly full, and a client of it."""

    def __init__(self, bus: Bus, shell: RouterShell, client: TideClient) -> None:
        self.bus = bus
        self.shell = shell
        self.client = client

    async def submit(self, request_id: str) -> None:
        """Return once the request is accepted. Raises: RequestRefused."""
        stream = self.client.stream(model="tide-tiny", prompt="The", request_id=request_id)
        try:
            async with asyncio.timeout(10):
                await stream.accepted()
        finally:
            await stream.aclose()

    async def submit_until_taken(self, request_id: str) -> None:
        """Come back when told to, for ten seconds."""
        async with asyncio.timeout(10):
            while True:
                try:
                    return await self.submit(request_id)
                except RequestRefused as refusal:
                    await asyncio.sleep(seconds(refusal.retry_after_ns or 0))


@asynccontextmanager
async def a_stack(kind: str, folder: Path, **bounds: int) -> AsyncIterator[Stack]:
    async with AsyncExitStack() as stack:
        bus, other = await _two_buses(kind, folder, stack)
        journal = replace(JOURNAL_OPTIONS, messages_max=bounds.get("journal_messages_max", 1000))
        await bus.ensure_stream(journal)
        claims = await bus.ensure_bucket(
            subjects.CLAIM_BUCKET,
            age_max_ns=CLAIM_AGE_MAX_NS,
            bytes_max=bounds.get("claim_bytes_max", 256 * KIB),
        )
        clock = SystemClock()
        tokenization = load_tokenization((str(MODEL),))
        shell = RouterShell(
            bus=bus,
            journal=JournalPort(bus, claims, clock),
            tokenization=tokenization,
            options=RouterOptions(router_id="router-a", aliases=("tide-tiny",), process_id=1),
            clock=clock,
        )
        stopping = asyncio.Event()
        running = asyncio.create_task(shell.run(stopping))
        reporting = asyncio.create_task(_report_a_worker(other))
        options = ClientOptions(reader=ReaderOptions(reasons_not_retried=frozenset(RejectReason)))
        client = await stack.enter_async_context(TideClient(other, options=options))
        async with asyncio.timeout(10):
            while not shell.core.state.workers:
                await asyncio.sleep(0.01)
        try:
            yield Stack(bus, shell, client)
        finally:
            reporting.cancel()
            stopping.set()
            await asyncio.gather(running, reporting, return_exceptions=True)
        assert not running.cancelled()
        assert running.exception() is None


async def _two_buses(kind: str, folder: Path, stack: AsyncExitStack) -> tuple[Bus, Bus]:
    if kind == "memory":
        hub = MemoryHub()
        return MemoryBus(hub), MemoryBus(hub)
    server = stack.enter_context(NatsServer(ServerOptions(data_folder=folder)))
    buses = [await NatsBus.connect(server.url, name=name) for name in ("router", "client")]
    for bus in buses:
        stack.push_async_callback(bus.close)
    return buses[0], buses[1]


async def _report_a_worker(bus: Bus) -> None:
    """Report a worker that is always there; it takes sessions and never answers."""
    beat = 0
    while True:
        report = WorkerReport(
            worker_id="w1",
            beat=beat,
            alias="tide-tiny",
            process_id=1,
            context_tokens_max=256,
            vocabulary_size=2048,
            block_tokens=16,
            blocks_total=64,
            blocks_free=64,
            sessions_running=0,
            sessions_waiting=0,
            tokens_waiting=0,
            tokens_generated=0,
            steps=0,
            step_ms_recent=0.0,
        )
        await bus.publish(subjects.worker_report("w1"), encode(report))
        beat += 1
        await asyncio.sleep(0.1)


async def fill(write: Callable[[int], Awaitable[object]]) -> int:
    """Write until the stream is full; return how many fitted."""
    for number in range(1000):
        try:
            await write(number)
        except StreamFull:
            return number
    raise AssertionError("the stream has no bound")


def run(work: Callable[[], object]) -> None:
    asyncio.run(work())  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["memory", "nats"])
def test_a_full_journal_refuses_and_takes_the_same_request_once_there_is_room(
    kind: str, tmp_path: Path
) -> None:
    async def work() -> None:
        async with a_stack(kind, tmp_path, journal_messages_max=8) as stack:
            await stack.submit("first")
            assert await fill(lambda _: stack.bus.append(JUNK, b"x")) < 9
            for name in ("second", "third"):
                with pytest.raises(RequestRefused) as refusal:
                    await stack.submit(name)
                assert refusal.value.reason is RejectReason.UNAVAILABLE
                assert refusal.value.retry_after_ns
            assert "third" not in stack.shell.core.state.sessions
            await stack.bus.purge(subjects.JOURNAL_STREAM, JUNK)
            await stack.submit_until_taken("third")

    run(work)


@pytest.mark.parametrize("kind", ["memory", "nats"])
def test_a_full_bucket_of_claims_refuses_and_takes_the_same_request_once_there_is_room(
    kind: str, tmp_path: Path
) -> None:
    async def work() -> None:
        async with a_stack(kind, tmp_path, claim_bytes_max=4 * KIB) as stack:
            claims = await stack.bus.ensure_bucket(
                subjects.CLAIM_BUCKET, age_max_ns=CLAIM_AGE_MAX_NS, bytes_max=4 * KIB
            )
            await stack.submit("first")
            junk = await fill(lambda number: claims.create(f"j{number}", b"x"))
            assert junk > 2
            with pytest.raises(RequestRefused) as refusal:
                await stack.submit("second")
            assert refusal.value.reason is RejectReason.UNAVAILABLE
            assert refusal.value.retry_after_ns
            assert "second" not in stack.shell.core.state.sessions
            bucket = subjects.CLAIM_BUCKET
            for number in range(junk):
                await stack.bus.purge(f"KV_{bucket}", f"$KV.{bucket}.j{number}")
            await stack.submit_until_taken("second")

    run(work)


def test_every_stream_that_a_router_makes_has_bounds_and_refuses_at_them() -> None:
    assert JOURNAL_OPTIONS.discard == "new"
    assert JOURNAL_OPTIONS.messages_max > 0
    assert JOURNAL_OPTIONS.bytes_max > 0
    assert JOURNAL_OPTIONS.age_max_ns
    assert CLAIM_AGE_MAX_NS > NS_PER_S
