"""Real planned workers, a router and nats-server; the test is the migrator."""

import asyncio
import inspect
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from libs.client.client import TideClient
from libs.contracts import subjects
from libs.contracts.handover import (
    MIGRATOR_CONTROL,
    ActivateReplica,
    CopyKv,
    DropReplica,
    FormReplica,
    LoadWeights,
    PlacedWorker,
    ReleaseSessions,
    ReplicaRoster,
    ShapeDone,
    StagePosition,
    StopReplica,
    ToMigrator,
    ToShape,
)
from libs.contracts.reports import REPORTS, WorkerReport
from libs.contracts.wire import encode
from libs.kernel.errors import ConfigError
from libs.runtime.bus import Subscription
from libs.runtime.nats_bus import NatsBus
from libs.runtime.nats_server import NatsServer, ServerOptions
from libs.runtime.nats_server_search import find_nats_server

ROOT = Path(__file__).parents[4]
MODEL = ROOT / "models" / "tide-tiny"
ALIAS = "tide"
BLOCK_TOKENS = 16
WAIT_S = 60.0
"""Nothing here takes seconds on a machine of its own; a busy one may."""
START_WAIT_S = 240.0
"""To import torch five times at once takes 10 s on two idle cores."""
REPEAT_S = 0.3
ANSWER_TOKENS = 400
"""Long enough that a hand-over finds them all under way, however quiet the machine is."""
QUESTIONS = (
    "What does str.split do?",
    "Tell me about the json module.",
    "What is a dictionary?",
    "What is the heapq module for?",
)


@dataclass
class Answer:
    """One stream through the router, as its client sees it."""

    tokens: list[int] = field(default_factory=list)
    reading: asyncio.Task[None] | None = None


class Migrator:
    """Sends commands until they are answered, as the service does; plans nothing."""

    def __init__(self, bus: NatsBus, *, number: int) -> None:
        self._bus = bus
        self._answers: dict[tuple[str, str], ToMigrator] = {}
        self._reports: dict[str, WorkerReport] = {}
        self._recomputed_before: dict[str, int] = {}
        self._changed = asyncio.Condition()
        self._number = number
        self._ops = 0
        self._staged: list[ReplicaRoster] = []
        self.epoch = 10 * number
        self.revision = 10 * number

    @asynccontextmanager
    async def listening(self) -> AsyncIterator["Migrator"]:
        control = await self._bus.subscribe(subjects.migrator_control("migrator"))
        reports = await self._bus.subscribe(subjects.WORKER_REPORTS)
        tasks = [
            asyncio.create_task(self._read(control, self._on_answer)),
            asyncio.create_task(self._read(reports, self._on_report)),
        ]
        try:
            yield self
        finally:
            for task in tasks:
                task.cancel()

    def report_of(self, worker_id: str) -> WorkerReport:
        return self._reports[worker_id]

    async def until(self, is_reached: Callable[[], bool], *, wait_s: float = WAIT_S) -> None:
        async with asyncio.timeout(wait_s), self._changed:
            await self._changed.wait_for(is_reached)

    async def until_report(
        self, worker_id: str, is_meant: Callable[[WorkerReport], bool]
    ) -> WorkerReport:
        await self.until(lambda: worker_id in self._reports and is_meant(self._reports[worker_id]))
        return self._reports[worker_id]

    async def workers(self, count: int, *, wait_s: float = WAIT_S) -> list[str]:
        """Wait for so many planned workers; return their ids in the order of their names."""
        await self.until(lambda: len(self._reports) >= count, wait_s=wait_s)
        return sorted(self._reports)[:count]

    async def clear(self, is_alive: Callable[[str], bool]) -> None:
        """Drop all that this migrator has staged, wherever it is alive."""
        self.epoch = max(self.epoch, 10 * self._number + 9)
        self.revision += 1
        for roster in self._staged:
            if is_alive(lead_of(roster)):
                await self.ask(lead_of(roster), StopReplica, source=roster)
            for worker in roster.workers:
                if is_alive(worker.worker_id):
                    await self.done(worker.worker_id, DropReplica, replica_id=roster.replica_id)

    def roster(
        self, replica_id: str, *worker_ids: str, stages: int = 1, shards: int = 1
    ) -> ReplicaRoster:
        return ReplicaRoster(
            replica_id=f"{replica_id}-{self._number}",
            replica_epoch=self.revision,
            stages=stages,
            shards=shards,
            workers=tuple(
                PlacedWorker(
                    worker_id=worker_id,
                    peer_address=self._reports[worker_id].peer_address,
                    stage=rank // shards,
                    shard=rank % shards,
                )
                for rank, worker_id in enumerate(worker_ids)
            ),
        )

    async def ask(self, worker_id: str, kind: type[Any], **fields: Any) -> ToMigrator:
        """Send one command until it is answered."""
        self._ops += 1
        op_id = f"op-{self._number}-{self._ops}"
        message: ToShape = kind(
            handover_id="handover",
            handover_epoch=self.epoch,
            migrator_id="migrator",
            op_id=op_id,
            plan_revision=self.revision,
            **fields,
        )
        async with asyncio.timeout(WAIT_S):
            while (worker_id, op_id) not in self._answers:
                await self._bus.publish(subjects.worker_shape(worker_id), encode(message))
                try:
                    async with asyncio.timeout(REPEAT_S), self._changed:
                        await self._changed.wait_for(lambda: (worker_id, op_id) in self._answers)
                except TimeoutError:
                    continue
        return self._answers[worker_id, op_id]

    async def done(self, worker_id: str, kind: type[Any], **fields: Any) -> ShapeDone:
        answer = await self.ask(worker_id, kind, **fields)
        assert isinstance(answer, ShapeDone), answer
        return answer

    async def all_done(
        self, roster: ReplicaRoster, kind: type[Any], **fields: Any
    ) -> list[ShapeDone]:
        """Send one command to all workers of a replica at once."""
        asking = (self.done(worker.worker_id, kind, **fields) for worker in roster.workers)
        return list(await asyncio.gather(*asking))

    async def stage(self, *targets: ReplicaRoster) -> dict[str, tuple[str, int]]:
        """Stage; return rendezvous and blocks of each replica."""
        found = {}
        for target in targets:
            self._staged.append(target)
            answers = await self.all_done(target, StagePosition, replica=target)
            rendezvous = next((a.rendezvous for a in answers if a.rendezvous), "")
            found[target.replica_id] = (rendezvous, min(a.kv_blocks for a in answers))
        return found

    async def prepare(
        self, *targets: ReplicaRoster, holders: Sequence[ReplicaRoster] = ()
    ) -> list[ShapeDone]:
        """Bring replicas up to where only their activation is missing; return the loads."""
        staged = await self.stage(*targets)
        loads = []
        for target in targets:
            loads += await self.all_done(
                target,
                LoadWeights,
                replica_id=target.replica_id,
                holders=tuple(holders),
                targets=targets,
            )
            rendezvous, kv_blocks = staged[target.replica_id]
            await self.all_done(
                target,
                FormReplica,
                replica_id=target.replica_id,
                rendezvous=rendezvous,
                kv_blocks=kv_blocks,
            )
        return loads

    async def serve(self, roster: ReplicaRoster) -> None:
        await self.prepare(roster)
        await self.all_done(roster, ActivateReplica, replica_id=roster.replica_id)
        assert roster.lead is not None
        await self.until_report(roster.lead.worker_id, lambda report: report.is_serving)

    async def hand_over(
        self, sources: Sequence[ReplicaRoster], targets: Sequence[ReplicaRoster], *, rounds: int = 2
    ) -> "HandedOver":
        """Go from some replicas to others as the policy tideserve does."""
        loads = await self.prepare(*targets, holders=sources)
        copies, stops = await self.copy_and_stop(sources, targets, rounds=rounds)
        for target in targets:
            await self.all_done(target, ActivateReplica, replica_id=target.replica_id)
        await self.release_and_drop(sources, targets)
        return HandedOver(loads=loads, copies=copies, stops=stops)

    async def copy_and_stop(
        self, sources: Sequence[ReplicaRoster], targets: Sequence[ReplicaRoster], *, rounds: int = 2
    ) -> tuple[list[ShapeDone], list[ShapeDone]]:
        """Copy the sources' KV while they decode, then the rest; return both rounds' answers."""
        copies = []
        for _ in range(rounds):
            copies += [
                await self.done(lead_of(s), CopyKv, source=s, targets=tuple(targets))
                for s in sources
            ]
        stops = [
            await self.done(lead_of(s), StopReplica, source=s, targets=tuple(targets))
            for s in sources
        ]
        return copies, stops

    async def release_and_drop(
        self, sources: Sequence[ReplicaRoster], targets: Sequence[ReplicaRoster]
    ) -> None:
        """Send the sources' sessions to the targets' leads, and free the sources."""
        leads = tuple(lead_of(target) for target in targets)
        for source in sources:
            await self.done(
                lead_of(source),
                ReleaseSessions,
                replica_id=source.replica_id,
                target_worker_ids=leads,
            )
        for source in sources:
            await self.all_done(source, DropReplica, replica_id=source.replica_id)

    def tokens_recomputed(self) -> int:
        """Count what all workers computed again since the test began."""
        now = sum(report.tokens_recomputed for report in self._reports.values())
        return now - sum(self._recomputed_before.values())

    async def _read(self, subscription: Subscription, handler: Callable[[bytes], None]) -> None:
        async for message in subscription:
            handler(message.payload)
            async with self._changed:
                self._changed.notify_all()

    def _on_answer(self, payload: bytes) -> None:
        answer = MIGRATOR_CONTROL.decode(payload)
        self._answers[answer.worker_id, answer.op_id] = answer

    def _on_report(self, payload: bytes) -> None:
        report = REPORTS.decode(payload)
        if isinstance(report, WorkerReport):
            self._reports[report.worker_id] = report
            self._recomputed_before.setdefault(report.worker_id, report.tokens_recomputed)


@dataclass(frozen=True)
class HandedOver:
    """What the workers answered."""

    loads: list[ShapeDone]
    copies: list[ShapeDone]
    stops: list[ShapeDone]


class Fleet:
    """Processes that tests may disturb, a migrator for each test, streams through the router."""

    def __init__(self, server: NatsServer, **settings: str) -> None:
        self._server = server
        self._settings = settings
        self.first_settings: dict[str, str] = {}
        """Of the first worker alone."""
        self._workers: list[subprocess.Popen[str]] = []
        self._router: subprocess.Popen[str] | None = None
        self._tests = 0
        self.migrator: Migrator
        self._client: TideClient

    @asynccontextmanager
    async def running(self, workers: int) -> AsyncIterator["Fleet"]:
        """Have so many workers that live and hold nothing; leave them so."""
        self._start_processes(workers)
        self._tests += 1
        bus = await NatsBus.connect(self._server.url, name="migrator")
        try:
            async with Migrator(bus, number=self._tests).listening() as self.migrator:
                await self.migrator.workers(len(self._alive()), wait_s=START_WAIT_S)
                self._client = await TideClient.connect(self._server.url)
                try:
                    yield self
                    await self.migrator.clear(self.is_alive)
                finally:
                    await self._client.close()
        finally:
            await bus.close()

    def stop(self) -> None:
        """Kill everything."""
        for process in [*self._workers, *([self._router] if self._router else [])]:
            process.kill()
            process.communicate()

    def _start_processes(self, workers: int) -> None:
        while len(self._alive()) < workers:
            own = {} if self._workers else self.first_settings
            self._workers.append(
                self._start(
                    "gpu_worker",
                    MODEL=str(MODEL),
                    ALIAS=ALIAS,
                    WORKER_ID=f"w{len(self._workers)}",
                    NODE_ID=f"node-{len(self._workers)}",
                    PLACEMENT="planned",
                    **{"BLOCKS_TOTAL": "512", **self._settings, **own},
                )
            )
        if self._router is None:
            self._router = self._start("online_router", MODELS=f"{ALIAS}={MODEL}")

    def _alive(self) -> list[subprocess.Popen[str]]:
        return [process for process in self._workers if process.poll() is None]

    def process_of(self, worker_id: str) -> int:
        return self.migrator.report_of(worker_id).process_id

    def strike(self, worker_id: str, number: signal.Signals) -> None:
        """Send a signal to a worker's process."""
        os.kill(self.process_of(worker_id), number)

    def is_alive(self, worker_id: str) -> bool:
        return any(p.pid == self.process_of(worker_id) for p in self._alive())

    def start_answers(self, count: int, **request: Any) -> list[Answer]:
        """Begin streams, every other one greedy, the rest seeded."""
        answers = [Answer() for _ in range(count)]
        for number, answer in enumerate(answers):
            answer.reading = asyncio.create_task(self._read(number, answer, **request))
        return answers

    async def until_tokens(self, answers: Sequence[Answer], count: int) -> None:
        """Wait until every stream has so many tokens."""
        async with asyncio.timeout(WAIT_S):
            while min(len(answer.tokens) for answer in answers) < count:
                _raise_failures(answers)
                await asyncio.sleep(0.005)

    async def finished(self, answers: Sequence[Answer]) -> list[list[int]]:
        """Wait for all ends; return the tokens."""
        async with asyncio.timeout(WAIT_S):
            await asyncio.gather(*(a.reading for a in answers if a.reading is not None))
        return [answer.tokens for answer in answers]

    async def undisturbed(self, count: int, **request: Any) -> list[list[int]]:
        """The same streams while nothing happens."""
        return await self.finished(self.start_answers(count, **request))

    async def _read(self, number: int, answer: Answer, **request: Any) -> None:
        sampling: dict[str, Any] = {"temperature": 0.0}
        if number % 2:
            sampling = {"temperature": 0.9, "top_p": 0.95, "seed": 1000 + number}
        question = f"{QUESTIONS[number % len(QUESTIONS)]} ({number})"
        asked = {
            "messages": [{"role": "user", "content": question}],
            "max_tokens": ANSWER_TOKENS,
            "ignore_eos": True,
            **sampling,
        }
        stream = self._client.stream(model=ALIAS, **(asked | request))
        async with stream:
            async for token in stream:
                assert token.index == len(answer.tokens)
                answer.tokens.append(token.token_id)

    def _start(self, service: str, **settings: str) -> subprocess.Popen[str]:
        fields = {"NATS_URL": self._server.url, "LOG_LEVEL": "warning", **settings}
        prefix = service.upper()
        return subprocess.Popen(
            [sys.executable, "-m", f"services.{service}"],
            cwd=ROOT,
            env={
                **os.environ,
                "HF_HUB_OFFLINE": "1",
                **{f"{prefix}__{name}": value for name, value in fields.items()},
            },
            text=True,
        )


def lead_of(roster: ReplicaRoster) -> str:
    """Return the worker that speaks for the replica."""
    assert roster.lead is not None
    return roster.lead.worker_id


def _raise_failures(answers: Sequence[Answer]) -> None:
    for answer in answers:
        if answer.reading is not None and answer.reading.done():
            answer.reading.result()


def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test that is a coroutine function on a loop of its own."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = pyfuncitem._fixtureinfo.argnames
    asyncio.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names}))
    return True


@contextmanager
def a_fleet(folder: Path, **settings: str) -> Iterator[Fleet]:
    """Processes on a broker of their own; those that a test has killed are replaced."""
    try:
        program = find_nats_server(environment=dict(os.environ), may_fetch=False)
    except ConfigError as error:
        pytest.skip(str(error))
    with NatsServer(ServerOptions(data_folder=folder), program=program) as server:
        fleet = Fleet(server, **settings)
        yield fleet
        fleet.stop()


@pytest.fixture(scope="package")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Workers that copy nothing unasked; gone when the tests of this folder are over."""
    with a_fleet(tmp_path_factory.mktemp("nats"), GROUP_TIMEOUT_MS="3000") as fleet:
        yield fleet
