"""The Kubernetes source against an API server's watch: events, its end, its errors, its tokens."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from libs.kernel.errors import ContractViolation, Unavailable
from libs.kernel.units import NS_PER_S
from services.preemption_watcher.sources.http_client import HttpClient
from services.preemption_watcher.sources.kubernetes import KubernetesSource, node_reader, read_pod

Cloud = Callable[..., Any]
TAINT = {"key": "karpenter.sh/disrupted", "effect": "NoSchedule"}


def a_node(*taints: dict[str, str], version: int = 1) -> dict[str, Any]:
    metadata = {"name": "gpu-1", "uid": "u-1", "resourceVersion": str(version)}
    return {"kind": "Node", "metadata": metadata, "spec": {"taints": list(taints)}}


class ApiServer:
    """One object; a watch begins with it as it is and goes on with what the test sends."""

    def __init__(self, reply: Any, subject: dict[str, Any] | None) -> None:
        self._reply = reply
        self.subject = subject
        self.calls: list[Any] = []
        self.token = "first"
        self.watches: list[asyncio.Queue[bytes | None]] = []

    async def __call__(self, call: Any) -> Any:
        self.calls.append(call)
        if call.headers.get("authorization") != f"Bearer {self.token}":
            return self._reply.of_json({"kind": "Status", "code": 401}, status=401)
        lines: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.watches.append(lines)
        if self.subject is not None:
            self._put(lines, "ADDED", self.subject)
        return self._reply(more=self._stream(lines))

    def send(self, event_type: str, subject: Any) -> None:
        self._put(self.watches[-1], event_type, subject)

    def send_bytes(self, line: bytes) -> None:
        self.watches[-1].put_nowait(line)

    def end(self) -> None:
        self.watches[-1].put_nowait(None)

    def _put(self, lines: asyncio.Queue[bytes | None], event_type: str, subject: Any) -> None:
        line = json.dumps({"type": event_type, "object": subject}).encode() + b"\n"
        # In two pieces: an event need not arrive whole.
        lines.put_nowait(line[:20])
        lines.put_nowait(line[20:])

    async def _stream(self, lines: asyncio.Queue[bytes | None]) -> AsyncIterator[bytes]:
        while (line := await lines.get()) is not None:
            yield line


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    file = tmp_path / "token"
    file.write_text("first\n")
    return file


def a_source(url: str, token_file: Path | None, **changes: Any) -> KubernetesSource:
    options = {
        "name": "kubernetes",
        "collection": "/api/v1/nodes",
        "object_name": "gpu-1",
        "read": node_reader(extra_taints=(), grace_ns=25 * NS_PER_S),
        **changes,
    }
    client = HttpClient(url, setting="kubernetes.base_url")
    return KubernetesSource(client, token_file=token_file, **options)


async def test_a_taint_is_a_notice_and_its_removal_withdraws_it(
    cloud: Cloud, reply: Any, token_file: Path
) -> None:
    server = ApiServer(reply, a_node())
    async with cloud(server) as url:
        source = a_source(url, token_file)
        assert (await source.poll()).readings == ()
        waiting = asyncio.create_task(source.poll())
        await asyncio.sleep(0.01)
        assert not waiting.done()
        server.send("MODIFIED", a_node(TAINT, version=2))
        assert len((await waiting).readings) == 1
        server.send("MODIFIED", a_node(version=3))
        observation = await source.poll()
        assert (observation.readings, observation.is_whole) == ((), True)
        [call] = server.calls
        assert call.path == "/api/v1/nodes"
        assert call.query["fieldSelector"] == "metadata.name=gpu-1"
        assert (call.query["watch"], call.query["timeoutSeconds"]) == ("true", "240")
        await source.close()


async def test_a_watch_that_ends_is_begun_anew_and_shows_what_was_missed(
    cloud: Cloud, reply: Any, token_file: Path
) -> None:
    server = ApiServer(reply, a_node(TAINT))
    async with cloud(server) as url:
        source = a_source(url, token_file)
        first = await source.poll()
        server.end()
        assert await source.poll() == first, "the end of a watch says nothing about the node"
        server.subject = a_node()
        assert (await source.poll()).readings == ()
        await source.close()


async def test_an_error_in_the_watch_is_unavailable_and_then_it_is_begun_anew(
    cloud: Cloud, reply: Any, token_file: Path
) -> None:
    server = ApiServer(reply, a_node())
    async with cloud(server) as url:
        source = a_source(url, token_file)
        await source.poll()
        server.send("ERROR", {"kind": "Status", "code": 410, "message": "too old"})
        with pytest.raises(Unavailable, match="410: too old"):
            await source.poll()
        server.subject = a_node(TAINT)
        assert len((await source.poll()).readings) == 1
        await source.close()


async def test_a_renewed_token_is_used_from_the_next_watch_on(
    cloud: Cloud, reply: Any, token_file: Path
) -> None:
    server = ApiServer(reply, a_node())
    server.token = "second"
    async with cloud(server) as url:
        source = a_source(url, token_file)
        with pytest.raises(Unavailable, match="HTTP 401 for /api/v1/nodes"):
            await source.poll()
        token_file.write_text("second")
        assert (await source.poll()).is_whole
        token_file.unlink()
        server.end()
        await source.poll()
        with pytest.raises(Unavailable, match="token"):
            await source.poll()
        await source.close()


async def test_garbage_in_a_watch_is_refused_and_the_next_event_is_read(
    cloud: Cloud, reply: Any, token_file: Path
) -> None:
    server = ApiServer(reply, a_node())
    async with cloud(server) as url:
        source = a_source(url, token_file)
        await source.poll()
        for garbage in (b"not json\n", b'{"type": "ADDED"}\n', b'{"type": "?", "object": {}}\n'):
            server.send_bytes(garbage)
            with pytest.raises(ContractViolation):
                await source.poll()
        server.send("BOOKMARK", {"metadata": {"resourceVersion": "9"}})
        assert (await source.poll()).readings == ()
        server.send("MODIFIED", a_node(TAINT))
        assert len((await source.poll()).readings) == 1
        assert len(server.calls) == 1
        await source.close()


async def test_a_node_that_is_deleted_leaves_no_time(
    cloud: Cloud, reply: Any, token_file: Path
) -> None:
    server = ApiServer(reply, a_node())
    async with cloud(server) as url:
        source = a_source(url, token_file)
        await source.poll()
        server.send("DELETED", a_node())
        [reading] = (await source.poll()).readings
        assert reading.grace_ns == 0
        await source.close()


async def test_an_evicted_pod_is_a_notice(cloud: Cloud, reply: Any, token_file: Path) -> None:
    pod = {"kind": "Pod", "metadata": {"name": "w-0", "uid": "u-2"}}
    server = ApiServer(reply, pod)
    async with cloud(server) as url:
        source = a_source(
            url,
            token_file,
            name="kubernetes-pod",
            collection="/api/v1/namespaces/tide/pods",
            object_name="w-0",
            read=read_pod,
        )
        assert (await source.poll()).readings == ()
        ending = {**pod["metadata"], "deletionTimestamp": "2027-01-15T08:00:30Z"}  # type: ignore[dict-item]
        server.send("MODIFIED", {**pod, "metadata": ending})
        [reading] = (await source.poll()).readings
        assert reading.deadline_at_unix_ns == 1_800_000_030 * NS_PER_S
        assert server.calls[0].path == "/api/v1/namespaces/tide/pods"
        await source.close()


async def test_a_watch_that_breaks_off_is_unavailable(
    cloud: Cloud, reply: Any, token_file: Path
) -> None:
    server = ApiServer(reply, a_node())
    async with cloud(server) as url:
        source = a_source(url, token_file)
        await source.poll()
    with pytest.raises(Unavailable):
        await polled(source, times=3)
    await source.close()


async def polled(source: KubernetesSource, *, times: int) -> None:
    """The watch may seem to have ended well; the one that follows it cannot."""
    for _ in range(times):
        await source.poll()
