"""The Compute Engine source against a metadata server with hanging GETs and entity tags."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from libs.contracts.preemption import NoticeKind
from libs.kernel.errors import ContractViolation, Unavailable
from libs.kernel.units import NS_PER_S
from services.preemption_watcher.sources.gcp import maintenance_source, preempted_source
from services.preemption_watcher.sources.http_client import HttpClient

Cloud = Callable[..., Any]
ROOT = "/computeMetadata/v1/instance/"


class MetadataServer:
    """Answers at once, or with wait_for_change when the value differs from last_etag's."""

    def __init__(self, reply: Any) -> None:
        self._reply = reply
        self._values = {"preempted": "FALSE", "maintenance-event": "NONE"}
        self._changed = asyncio.Condition()
        self.calls: list[dict[str, str]] = []
        self.status = 200
        self.flavor = "Google"

    async def set(self, key: str, value: str) -> None:
        async with self._changed:
            self._values[key] = value
            self._changed.notify_all()

    async def __call__(self, call: Any) -> Any:
        self.calls.append(call.query)
        if call.headers.get("metadata-flavor") != "Google":
            return self._reply(status=403)
        if self.status != 200:
            return self._reply(status=self.status)
        key = call.path.removeprefix(ROOT)
        if call.query.get("wait_for_change") == "true":
            last_etag = call.query["last_etag"]
            async with self._changed:
                await self._changed.wait_for(lambda: self._etag(key) != last_etag)
        headers = {"Metadata-Flavor": self.flavor, "ETag": self._etag(key)}
        return self._reply(body=f"{self._values[key]}\n".encode(), headers=headers)

    def _etag(self, key: str) -> str:
        return self._values[key].encode().hex()


def preempted(url: str, boot_id: str = "boot-1") -> Any:
    client = HttpClient(url, setting="gcp.base_url")
    return preempted_source(client, grace_ns=30 * NS_PER_S, boot_id=boot_id)


async def test_the_first_poll_answers_at_once_and_the_next_when_the_vm_is_preempted(
    cloud: Cloud, reply: Any
) -> None:
    server = MetadataServer(reply)
    async with cloud(server) as url:
        source = preempted(url)
        assert (await source.poll()).readings == ()
        hanging = asyncio.create_task(source.poll())
        while len(server.calls) < 2:
            await asyncio.sleep(0.001)
        assert not hanging.done()
        await server.set("preempted", "TRUE")
        [reading] = (await hanging).readings
        assert (reading.kind, reading.grace_ns) == (NoticeKind.PREEMPTION, 30 * NS_PER_S)
        assert server.calls == [
            {},
            {"wait_for_change": "true", "last_etag": b"FALSE".hex(), "timeout_sec": "60"},
        ]
        await source.close()


async def test_a_restarted_watcher_sees_the_same_notice_and_another_life_another(
    cloud: Cloud, reply: Any
) -> None:
    server = MetadataServer(reply)
    await server.set("preempted", "TRUE")
    async with cloud(server) as url:
        ids = []
        for boot_id in ("boot-1", "boot-1", "boot-2"):
            source = preempted(url, boot_id)
            ids.append((await source.poll()).readings[0].notice_id)
            await source.close()
    assert ids[0] == ids[1] != ids[2]


@pytest.mark.parametrize(
    ("value", "notices"),
    [
        ("NONE", 0),
        ("MIGRATE_ON_HOST_MAINTENANCE", 0),
        ("TERMINATE_ON_HOST_MAINTENANCE", 1),
    ],
)
async def test_host_maintenance_is_a_notice_only_where_it_stops_the_vm(
    cloud: Cloud, reply: Any, value: str, notices: int
) -> None:
    server = MetadataServer(reply)
    await server.set("maintenance-event", value)
    async with cloud(server) as url:
        client = HttpClient(url, setting="gcp.base_url")
        source = maintenance_source(client, grace_ns=3600 * NS_PER_S, boot_id="b")
        assert [r.kind for r in (await source.poll()).readings] == ["maintenance"] * notices
        await source.close()


async def test_after_a_failure_the_value_is_read_at_once(cloud: Cloud, reply: Any) -> None:
    server = MetadataServer(reply)
    async with cloud(server) as url:
        source = preempted(url)
        await source.poll()
        server.status = 503
        with pytest.raises(Unavailable, match="503"):
            await source.poll()
        server.status = 200
        await source.poll()
        assert server.calls[-1] == {}
        await source.close()


async def test_a_value_that_is_neither_true_nor_false_is_refused_and_the_next_is_read(
    cloud: Cloud, reply: Any
) -> None:
    server = MetadataServer(reply)
    await server.set("preempted", "MAYBE")
    async with cloud(server) as url:
        source = preempted(url)
        with pytest.raises(ContractViolation, match="MAYBE"):
            await source.poll()
        await server.set("preempted", "TRUE")
        assert len((await source.poll()).readings) == 1
        await source.close()


async def test_an_answer_of_somebody_else_is_refused(cloud: Cloud, reply: Any) -> None:
    server = MetadataServer(reply)
    server.flavor = "Captive Portal"
    async with cloud(server) as url:
        source = preempted(url)
        with pytest.raises(ContractViolation, match="Google"):
            await source.poll()
        await source.close()
