"""Watchers against a real nats-server: the bus, the node's socket, and what may go wrong."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from libs.contracts import subjects
from libs.contracts.preemption import (
    NOTICE_ANSWERS,
    NOTICES,
    ConfirmEvacuation,
    Notice,
    NoticeAnswer,
    NoticeRejectReason,
    NoticeRequest,
    NoticeRequestAccepted,
    NoticeRequestRejected,
    NoticeWithdrawn,
    PreemptionNotice,
    RaiseNotice,
    WithdrawNotice,
)
from libs.contracts.wire import encode
from libs.kernel.errors import EXIT_CONFIG_ERROR, ConfigError
from libs.kernel.units import NS_PER_S
from libs.runtime.bus import CoreBus, NoResponders
from libs.runtime.nats_bus import NatsBus
from libs.runtime.nats_server import NatsServer, ServerOptions
from libs.runtime.nats_server_search import find_nats_server
from libs.runtime.notice_socket import NoticeListener
from libs.runtime.process import die_with_parent

ROOT = Path(__file__).parents[3]
WAIT_S = 20.0
GRACE_NS = 30 * NS_PER_S


class Ear:
    """Everything heard from one place, in order."""

    def __init__(self) -> None:
        self.heard: list[Notice] = []
        self._more = asyncio.Condition()

    async def add(self, notice: Notice) -> None:
        async with self._more:
            self.heard.append(notice)
            self._more.notify_all()

    async def until(self, is_meant: Callable[[Notice], bool], *, after: int = 0) -> Notice:
        """Return the first such notice from a place in the order on."""
        async with asyncio.timeout(WAIT_S), self._more:
            await self._more.wait_for(lambda: any(map(is_meant, self.heard[after:])))
        return next(filter(is_meant, self.heard[after:]))

    async def raised(self, notice_id: str = "drill", *, after: int = 0) -> PreemptionNotice:
        notice = await self.until(
            lambda one: isinstance(one, PreemptionNotice) and one.notice_id == notice_id,
            after=after,
        )
        assert isinstance(notice, PreemptionNotice)
        return notice

    async def withdrawn(self, notice_id: str = "drill") -> None:
        await self.until(
            lambda one: isinstance(one, NoticeWithdrawn) and one.notice_id == notice_id
        )


class Node:
    """A watcher process of one node, with an ear at its socket and one at the bus."""

    def __init__(self, server: NatsServer, folder: Path, **settings: str) -> None:
        self.socket_path = folder / "notices.sock"
        self._settings = {
            "NATS_URL": server.url,
            "NODE_ID": "node-a",
            "SOCKET_PATH": str(self.socket_path),
            **settings,
        }
        self.worker = Ear()
        self.fleet = Ear()
        self._processes: list[subprocess.Popen[str]] = []

    @property
    def process(self) -> subprocess.Popen[str]:
        return self._processes[-1]

    def start(self) -> None:
        settings = {f"PREEMPTION_WATCHER__{key}": text for key, text in self._settings.items()}
        self._processes.append(
            subprocess.Popen(
                [sys.executable, "-m", "services.preemption_watcher"],
                cwd=ROOT,
                env={**os.environ, **settings},
                stderr=subprocess.PIPE,
                text=True,
                preexec_fn=die_with_parent,
            )
        )

    async def exit_code(self) -> int:
        async with asyncio.timeout(WAIT_S):
            return await asyncio.to_thread(self.process.wait)

    def clean_up(self) -> str:
        """Kill what is left and return everything that was logged, once."""
        log = ""
        while self._processes:
            process = self._processes.pop()
            process.kill()
            log = process.communicate()[1] + log
        return log

    @asynccontextmanager
    async def listening(self, bus: CoreBus) -> AsyncIterator[None]:
        on_bus = await bus.subscribe(subjects.NOTICES_ALL)

        async def hear_bus() -> None:
            async for message in on_bus:
                await self.fleet.add(NOTICES.decode(message.payload))

        async def hear_socket() -> None:
            async for notice in NoticeListener(self.socket_path):
                await self.worker.add(notice)

        tasks = [asyncio.create_task(hear_bus()), asyncio.create_task(hear_socket())]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    try:
        program = find_nats_server(environment=dict(os.environ), may_fetch=False)
    except ConfigError as error:
        pytest.skip(str(error))
    server = NatsServer(ServerOptions(data_folder=tmp_path / "nats"), program=program)
    server.start()
    yield server
    server.stop()


@asynccontextmanager
async def a_node(
    server: NatsServer, folder: Path, **settings: str
) -> AsyncIterator[tuple[Node, NatsBus]]:
    """Start a watcher; yield it once it listens on the bus."""
    node = Node(server, folder, **settings)
    bus = await NatsBus.connect(server.url, name="test")
    try:
        async with node.listening(bus):
            node.start()
            await until_answered(bus)
            yield node, bus
    finally:
        node.clean_up()
        await bus.close()


async def ask(bus: CoreBus, request: NoticeRequest) -> NoticeAnswer:
    subject = subjects.notice_request(request.node_id)
    return NOTICE_ANSWERS.decode((await bus.request(subject, encode(request))).payload)


async def until_answered(bus: CoreBus) -> None:
    async with asyncio.timeout(WAIT_S):
        while True:
            try:
                await ask(bus, WithdrawNotice(notice_id="none", node_id="node-a"))
            except NoResponders:
                await asyncio.sleep(0.01)
            else:
                return


def a_drill(**changes: Any) -> RaiseNotice:
    return RaiseNotice(notice_id="drill", node_id="node-a", grace_ns=GRACE_NS, **changes)


async def test_a_notice_reaches_the_fleet_and_the_workers_again_and_again_until_withdrawn(
    server: NatsServer, tmp_path: Path
) -> None:
    async with a_node(server, tmp_path) as (node, bus):
        assert isinstance(await ask(bus, a_drill()), NoticeRequestAccepted)
        for ear in (node.fleet, node.worker):
            first = await ear.raised()
            assert first.source == "manual"
            again = await ear.raised(after=len(ear.heard))
            assert again.notice_id == first.notice_id
            assert first.grace_ns is not None
            assert again.grace_ns is not None
            assert again.grace_ns < first.grace_ns < GRACE_NS
        withdraw = WithdrawNotice(notice_id="drill", node_id="node-a")
        assert isinstance(await ask(bus, withdraw), NoticeRequestAccepted)
        await node.fleet.withdrawn()
        await node.worker.withdrawn()


async def test_what_cannot_be_done_is_said_in_the_encoding_of_the_request(
    server: NatsServer, tmp_path: Path
) -> None:
    async with a_node(server, tmp_path) as (_, bus):
        subject = subjects.notice_request("node-a")
        request = {"type": "raise_notice.v1", "notice_id": "drill", "node_id": "node-a"}
        accepted = await bus.request(subject, json.dumps(request).encode())
        assert json.loads(accepted.payload)["type"] == "notice_request_accepted.v1"
        refused = await bus.request(subject, json.dumps({**request, "grace_ns": -1}).encode())
        answer = json.loads(refused.payload)
        assert (answer["reason"], "grace_ns" in answer["message"]) == ("invalid", True)
        garbage = NOTICE_ANSWERS.decode((await bus.request(subject, b"\xc1")).payload)
        assert isinstance(garbage, NoticeRequestRejected)
        astray = encode(a_drill().model_copy(update={"node_id": "node-b"}))
        wrong = NOTICE_ANSWERS.decode((await bus.request(subject, astray)).payload)
        assert isinstance(wrong, NoticeRequestRejected)
        assert wrong.reason is NoticeRejectReason.WRONG_NODE
        with pytest.raises(NoResponders):
            await ask(bus, ConfirmEvacuation(notice_id="drill", node_id="nobody"))


async def test_the_workers_hear_of_a_notice_while_the_broker_is_frozen_and_the_fleet_after(
    server: NatsServer, tmp_path: Path, cloud: Any, reply: Any
) -> None:
    imds = PlainImds(reply)
    async with cloud(imds) as url:
        settings = {"SOURCES": "aws", "AWS__BASE_URL": url, "AWS__POLL_INTERVAL_MS": "50"}
        async with a_node(server, tmp_path, **settings) as (node, _):
            server.pause()
            imds.action = {"action": "terminate", "time": "2199-01-01T00:00:00Z"}
            notice = await node.worker.until(lambda _: True)
            assert (notice.source, node.fleet.heard) == ("aws", [])
            await node.worker.raised(notice.notice_id, after=len(node.worker.heard))
            server.resume()
            await node.fleet.raised(notice.notice_id)


async def test_a_watcher_that_starts_without_a_broker_serves_its_workers_and_joins_later(
    server: NatsServer, tmp_path: Path
) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text('{"at_s": 0, "node_id": "node-a", "action": "preempt", "grace_s": 60}')
    node = Node(server, tmp_path, SOURCES="trace", TRACE__FILE=str(trace))
    bus = await NatsBus.connect(server.url, name="test")
    try:
        async with node.listening(bus):
            server.kill()
            node.start()
            notice = await node.worker.until(lambda _: True)
            assert node.fleet.heard == []
            server.start()
            await node.fleet.raised(notice.notice_id)
            await until_answered(bus)
    finally:
        node.clean_up()
        await bus.close()


async def test_a_killed_watcher_gives_the_same_notice_again_when_it_is_back(
    server: NatsServer, tmp_path: Path, cloud: Any, reply: Any
) -> None:
    imds = PlainImds(reply)
    imds.action = {"action": "stop", "time": "2199-01-01T00:00:00Z"}
    async with cloud(imds) as url:
        settings = {"SOURCES": "aws", "AWS__BASE_URL": url}
        async with a_node(server, tmp_path, **settings) as (node, _):
            first = await node.worker.until(lambda _: True)
            node.process.kill()
            await node.exit_code()
            heard_by_worker, heard_by_fleet = len(node.worker.heard), len(node.fleet.heard)
            node.start()
            await node.worker.raised(first.notice_id, after=heard_by_worker)
            await node.fleet.raised(first.notice_id, after=heard_by_fleet)
            assert not [n for n in node.worker.heard if isinstance(n, NoticeWithdrawn)]


async def test_a_cloud_whose_clock_is_ahead_gives_a_notice_without_time_and_not_none(
    server: NatsServer, tmp_path: Path, cloud: Any, reply: Any
) -> None:
    imds = PlainImds(reply)
    imds.action = {"action": "terminate", "time": "2017-09-18T08:22:00Z", "hint": "unknown field"}
    async with cloud(imds) as url:
        settings = {"SOURCES": "aws", "AWS__BASE_URL": url}
        async with a_node(server, tmp_path, **settings) as (node, _):
            notice = await node.worker.until(lambda _: True)
            assert isinstance(notice, PreemptionNotice)
            assert notice.grace_ns == 0
            assert notice.deadline_at_unix_ns == 1_505_722_920 * NS_PER_S


async def test_garbage_is_logged_with_its_source_and_loses_no_later_notice(
    server: NatsServer, tmp_path: Path, cloud: Any, reply: Any
) -> None:
    imds = PlainImds(reply)
    imds.action = ["no", "object"]
    async with cloud(imds) as url:
        settings = {"SOURCES": "aws", "AWS__BASE_URL": url, "AWS__POLL_INTERVAL_MS": "20"}
        async with a_node(server, tmp_path, **settings) as (node, _):
            polls = imds.polls
            while imds.polls < polls + 5:
                await asyncio.sleep(0.01)
            imds.action = {"action": "terminate", "time": "2199-01-01T00:00:00Z"}
            await node.worker.until(lambda _: True)
            node.process.terminate()
            assert await node.exit_code() == 0
            lines = [json.loads(line) for line in node.clean_up().splitlines()]
        complaints = [line for line in lines if line["event"] == "source_unreadable"]
        assert [(line["source"], line["level"]) for line in complaints] == [("aws", "warning")]
        assert "not a JSON object" in complaints[0]["detail"]
        [raised] = [line for line in lines if line["event"] == "notice_raised"]
        assert (raised["node_id"], raised["kind"]) == ("node-a", "preemption")
        assert "source_recovered" in {line["event"] for line in lines}


async def test_a_confirmed_evacuation_is_told_to_azure_and_its_answer_to_whoever_confirmed(
    server: NatsServer, tmp_path: Path, cloud: Any, reply: Any
) -> None:
    approvals: list[Any] = []
    event = {
        "EventId": "A1-B2",
        "EventType": "Preempt",
        "EventStatus": "Scheduled",
        "Resources": ["gpu_0"],
        "NotBefore": "Sat, 15 Jan 2167 08:00:30 GMT",
    }

    async def azure(call: Any) -> Any:
        if call.method == "POST":
            approvals.append(json.loads(call.body))
            return reply(status=200 if len(approvals) > 1 else 503)
        return reply.of_json({"DocumentIncarnation": 1, "Events": [event]})

    async with cloud(azure) as url:
        settings = {"SOURCES": "azure", "AZURE__BASE_URL": url, "AZURE__VM_NAME": "gpu_0"}
        async with a_node(server, tmp_path, **settings) as (node, bus):
            notice = await node.fleet.until(lambda _: True)
            assert notice.notice_id == "a1-b2"
            confirm = ConfirmEvacuation(notice_id="a1-b2", node_id="node-a")
            refused = await ask(bus, confirm)
            assert isinstance(refused, NoticeRequestRejected)
            assert refused.reason is NoticeRejectReason.UNAVAILABLE
            assert isinstance(await ask(bus, confirm), NoticeRequestAccepted)
    assert approvals == [{"StartRequests": [{"EventId": "A1-B2"}]}] * 2


async def test_slurms_signals_are_notices_and_the_watcher_outlives_sigterm_by_its_grace(
    server: NatsServer, tmp_path: Path
) -> None:
    settings = {
        "SOURCES": "slurm",
        "SLURM__SIGUSR1_GRACE_MS": "50000",
        "SLURM__SIGTERM_GRACE_MS": "1500",
        "SAFETY_MS": "0",
    }
    async with a_node(server, tmp_path, **settings) as (node, _):
        node.process.send_signal(signal.SIGUSR1)
        early = await node.worker.until(lambda _: True)
        assert early.detail == "the job got SIGUSR1"
        node.process.terminate()
        late = await node.worker.until(lambda one: one.detail == "the job got SIGTERM")
        assert isinstance(late, PreemptionNotice)
        assert late.grace_ns is not None
        assert late.grace_ns <= 1_500_000_000
        await node.fleet.raised(late.notice_id)
        assert node.process.poll() is None
        assert await node.exit_code() == 0


async def test_a_watcher_stops_at_once_though_a_source_makes_it_wait(
    server: NatsServer, tmp_path: Path, cloud: Any, reply: Any
) -> None:
    asked = asyncio.Event()

    async def hanging(_: Any) -> Any:
        asked.set()
        await asyncio.sleep(60)
        return reply()

    async with cloud(hanging) as url:
        settings = {"SOURCES": "azure", "AZURE__BASE_URL": url, "AZURE__VM_NAME": "gpu_0"}
        async with a_node(server, tmp_path, **settings) as (node, _):
            await asked.wait()
            node.process.terminate()
            async with asyncio.timeout(3):
                assert await node.exit_code() == 0
            assert not node.socket_path.exists()


async def test_a_wrong_setting_ends_the_process_with_one_line(
    server: NatsServer, tmp_path: Path
) -> None:
    node = Node(server, tmp_path, SOURCES="kubernetes")
    node.start()
    assert await node.exit_code() == EXIT_CONFIG_ERROR
    assert node.clean_up().splitlines()[-1].startswith("preemption_watcher: kubernetes.node_name:")


class PlainImds:
    """The metadata service with one token and one document."""

    def __init__(self, reply: Any) -> None:
        self._reply = reply
        self.action: Any = None
        self.polls = 0

    async def __call__(self, call: Any) -> Any:
        if call.method == "PUT":
            return self._reply(body=b"token")
        if call.path.endswith("/spot/instance-action"):
            self.polls += 1
            if self.action is not None:
                return self._reply.of_json(self.action)
        return self._reply(status=404)
