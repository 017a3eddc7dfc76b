"""Offline queues in this process over a broker, with a scripted router in place of a fleet."""

import asyncio
import contextlib
import inspect
import json
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from libs.contracts import subjects
from libs.contracts.batches import (
    BATCH_ANSWERS,
    JOB_RESULTS,
    BatchAccepted,
    BatchAnswer,
    BatchQuestion,
    BatchRecord,
    BatchStatus,
    FilePurpose,
    FileRecord,
    JobEnded,
    SubmitBatch,
)
from libs.contracts.online import SubmitRequest
from libs.contracts.wire import encode
from libs.kernel.errors import Unavailable
from libs.kernel.units import NS_PER_MS
from libs.runtime.blob_store import BlobStore, open_blob_store, read_whole, write_whole
from libs.runtime.bus import Bus
from libs.runtime.clock import SystemClock
from libs.runtime.memory_bus import MemoryBus
from libs.runtime.memory_hub import MemoryHub
from libs.runtime.nats_bus import NatsBus
from libs.runtime.nats_server import NatsServer, ServerOptions
from services.offline_queue.options import QueueOptions
from services.offline_queue.shell import QueueShell
from services.offline_queue.store import OfflineStore, open_offline_store
from tests.scripted_router import LossyLink, Script, ScriptedRouter

COMPLETIONS = "/v1/completions"
LEASE_NS = 1_000 * NS_PER_MS
QUICK = {
    "report_interval_ns": 50 * NS_PER_MS,
    "survey_interval_ns": 50 * NS_PER_MS,
    "lease_again_ns": 50 * NS_PER_MS,
    "put_off_ns": 20 * NS_PER_MS,
}


def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test that is a coroutine function on a loop of its own."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = pyfuncitem._fixtureinfo.argnames
    asyncio.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names}))
    return True


def a_line(number: int, prompt: str, **body: object) -> str:
    """One request of a batch file."""
    return json.dumps(
        {
            "custom_id": f"line {number}",
            "method": "POST",
            "url": COMPLETIONS,
            "body": {"model": "tide-tiny", "prompt": prompt, "max_tokens": 8, **body},
        }
    )


def lines(count: int) -> list[str]:
    """So many requests, each with a prompt of its own."""
    return [a_line(number, f"prompt {number:03d}") for number in range(count)]


def echo_of(submission: SubmitRequest) -> Script:
    """Answer with the prompt, so that a mixed-up answer shows."""
    return Script(texts=["re:", *f" {submission.prompt}".split(" ")])


@dataclass(kw_only=True)
class Queue:
    """One queue as a task."""

    shell: QueueShell
    stopping: asyncio.Event
    task: asyncio.Task[None]
    bus: Bus

    async def stop(self) -> None:
        """End it in good order."""
        self.stopping.set()
        await self.task

    async def die(self) -> None:
        """End it as a kill would: no word to anybody, what it holds stays leased."""
        self.shell._asking.is_leaving = True  # nothing is cancelled at the routers
        await self.bus.close()
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


@dataclass(kw_only=True)
class Offline:
    """A broker, a blob store, a router, and queues."""

    connect: Callable[[], "asyncio.Future[Bus]"]
    bus: Bus
    blobs: BlobStore
    router: ScriptedRouter
    store: OfflineStore
    queues: list[Queue] = field(default_factory=list)
    bounds: dict[str, int] = field(default_factory=dict)
    """Of the streams, where they are not the product's."""
    lease_ns: int
    files: int = 0

    async def start_queue(self, **options: object) -> Queue:
        """Start one more queue."""
        bus = await self.connect()
        number = len(self.queues) + 1
        settings = QueueOptions(
            queue_id=f"queue-{number}",
            lease_ns=self.lease_ns,
            **{**QUICK, **options},  # type: ignore[arg-type]
        )
        clock = SystemClock()
        shell = QueueShell(
            bus=bus,
            store=await open_offline_store(bus, clock=clock, lease_ns=self.lease_ns, **self.bounds),
            blobs=self.blobs,
            options=settings,
            clock=clock,
        )
        stopping = asyncio.Event()
        task = asyncio.create_task(shell.run(stopping))
        queue = Queue(shell=shell, stopping=stopping, task=task, bus=bus)
        self.queues.append(queue)
        while not shell.actor.events_handled:
            await asyncio.sleep(0.005)
        return queue

    async def a_file(self, content: Sequence[str] | bytes, **fields: object) -> str:
        """Put a file into the store; return its id."""
        self.files += 1
        file_id = f"file-{self.files:08d}"
        if not isinstance(content, bytes):
            content = "".join(f"{line}\n" for line in content).encode()
        await write_whole(self.blobs, file_id, content)
        await self.store.files.put(
            file_id,
            FileRecord(
                **{
                    "file_id": file_id,
                    "purpose": FilePurpose.BATCH,
                    "file_name": "questions.jsonl",
                    "size_bytes": len(content),
                    "created_at_unix_s": self.store.now_unix_s(),
                    **fields,
                }  # type: ignore[arg-type]
            ),
        )
        return file_id

    async def ask(self, question: BatchQuestion) -> BatchAnswer:
        """Ask the queues."""
        reply = await self.bus.request(subjects.BATCH_CONTROL, encode(question))
        return BATCH_ANSWERS.decode(reply.payload)

    async def submit(self, content: Sequence[str] | bytes, **fields: object) -> str:
        """Submit a batch of these lines; return its id."""
        file_id = await self.a_file(content)
        batch_id = f"batch_{self.files:08d}"
        question = SubmitBatch(
            **{
                "batch_id": batch_id,
                "input_file_id": file_id,
                "endpoint": COMPLETIONS,
                **fields,
            }  # type: ignore[arg-type]
        )
        answer = await self.ask(question)
        assert isinstance(answer, BatchAccepted), answer
        return batch_id

    async def record(self, batch_id: str) -> BatchRecord:
        """The batch as it is now."""
        record = await self.store.batches.get(batch_id)
        assert record is not None
        return record

    async def reaches(
        self, batch_id: str, condition: Callable[[BatchRecord], bool], timeout_s: float = 20.0
    ) -> BatchRecord:
        """Return the record once it is like this."""
        record = await self.record(batch_id)
        try:
            async with asyncio.timeout(timeout_s):
                while not condition(record):
                    await asyncio.sleep(0.02)
                    with contextlib.suppress(Unavailable):
                        record = await self.record(batch_id)
        except TimeoutError:
            raise AssertionError(f"not in {timeout_s} s: {record}") from None
        return record

    async def ended(self, batch_id: str, *, timeout_s: float = 20.0) -> BatchRecord:
        """Return the record once it is final."""
        return await self.reaches(batch_id, lambda record: record.status.is_final, timeout_s)

    async def in_progress(self, batch_id: str) -> BatchRecord:
        """Return the record once its lines may be taken up."""
        return await self.reaches(batch_id, lambda record: record.status is BatchStatus.IN_PROGRESS)

    async def result(self, file_id: str | None) -> list[dict]:
        """The lines of an output or error file."""
        if file_id is None:
            return []
        content = await read_whole(self.blobs, file_id, bytes_max=10**9)
        return [json.loads(line) for line in content.splitlines()]

    async def job_result(self, alias: str, request_id: str) -> JobEnded:
        """Return how a job ended, once it has."""
        subject = subjects.offline_result(alias, request_id)
        async with asyncio.timeout(20):
            while True:
                message = await self.bus.last_message(subjects.RESULT_STREAM, subject)
                if message is not None:
                    return JOB_RESULTS.decode(message.payload)
                await asyncio.sleep(0.02)


class Worlds:
    """Builds worlds."""

    def __init__(self, folder: Path, *, nats_url: str | None) -> None:
        self._folder = folder
        self._nats_url = nats_url

    @asynccontextmanager
    async def __call__(
        self,
        script_of: Callable[[SubmitRequest], Script] = echo_of,
        *,
        link: LossyLink | None = None,
        queues: int = 1,
        bounds: dict[str, int] | None = None,
        lease_ns: int = LEASE_NS,
        **options: object,
    ) -> AsyncIterator[Offline]:
        bounds = bounds or {}
        hub = MemoryHub()
        async with AsyncExitStack() as stack:

            async def connect() -> Bus:
                if self._nats_url is None:
                    return MemoryBus(hub)
                bus = await NatsBus.connect(self._nats_url, name="test")
                stack.push_async_callback(bus.close)
                return bus

            bus = await connect()
            router = ScriptedRouter(
                await connect(), script_of=script_of, link=link, report_interval_ns=50 * NS_PER_MS
            )
            await stack.enter_async_context(router.serving())
            world = Offline(
                connect=connect,  # type: ignore[arg-type]
                bus=bus,
                blobs=open_blob_store(f"folder:{self._folder}/blobs"),
                router=router,
                store=await open_offline_store(
                    bus, clock=SystemClock(), lease_ns=lease_ns, **bounds
                ),
                lease_ns=lease_ns,
                bounds=bounds,
            )
            for _ in range(queues):
                await world.start_queue(**options)
            try:
                yield world
            finally:
                for queue in world.queues:
                    if not queue.task.done():
                        await queue.stop()


@pytest.fixture
def nats_url(tmp_path: Path) -> Iterator[str]:
    """A nats-server of our own."""
    with NatsServer(ServerOptions(data_folder=tmp_path / "nats")) as server:
        yield server.url


@pytest.fixture
def a_world(tmp_path: Path) -> Worlds:
    """Worlds over a bus in memory."""
    return Worlds(tmp_path, nats_url=None)


@pytest.fixture(params=["memory", "nats"])
def any_world(request: pytest.FixtureRequest, tmp_path: Path) -> Worlds:
    """Worlds over a bus in memory, and over a NATS server."""
    url = request.getfixturevalue("nats_url") if request.param == "nats" else None
    return Worlds(tmp_path, nats_url=url)
