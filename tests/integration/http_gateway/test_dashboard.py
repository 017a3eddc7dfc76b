"""The dashboard over HTTP: its page, its files, and the stream of snapshots."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx

from libs.contracts import subjects
from libs.contracts.batches import BatchCounts, BatchRecord, BatchStatus
from libs.contracts.placement import Placement, Policy
from libs.contracts.preemption import NoticeKind, PreemptionNotice
from libs.contracts.wire import Message, encode
from libs.kernel.units import MIB, NS_PER_S
from libs.runtime.bus import Bus
from services.http_gateway.dashboard.feed import WATCHERS_MAX

EVENTS = "/dashboard/events"
A_BATCH = BatchRecord(
    batch_id="batch_00000001",
    input_file_id="file-00000001",
    endpoint="/v1/completions",
    status=BatchStatus.IN_PROGRESS,
    counts=BatchCounts(total=4, completed=1),
    deadline_at_unix_s=1_900_000_000,
    created_at_unix_s=1_800_000_000,
)
A_PLACEMENT = Placement(plan_revision=3, alias="tiny", policy=Policy.TIDESERVE, reason="a notice")
A_NOTICE = PreemptionNotice(
    notice_id="n1",
    node_id="node-1",
    kind=NoticeKind.PREEMPTION,
    source="aws",
    observed_at_unix_ns=1,
    grace_ns=30 * NS_PER_S,
)


@asynccontextmanager
async def opened(http: httpx.AsyncClient) -> AsyncIterator[AsyncIterator[tuple[str, Any]]]:
    """The events of one page, each with its name."""
    async with asyncio.timeout(20), http.stream("GET", EVENTS) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        yield _events(response)


async def _events(response: httpx.Response) -> AsyncIterator[tuple[str, Any]]:
    name = ""
    async for line in response.aiter_lines():
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "))


async def snapshot_where(
    events: AsyncIterator[tuple[str, Any]], holds: Callable[[dict[str, Any]], bool]
) -> dict[str, Any]:
    async for name, content in events:
        if name == "snapshot" and holds(content):
            found: dict[str, Any] = content
            return found
    raise AssertionError("the stream ended")


async def put(bus: Bus, bucket: str, key: str, record: Message) -> None:
    store = await bus.ensure_bucket(bucket, bytes_max=MIB)
    await store.put(key, encode(record))


async def test_the_page_and_its_files_are_all_from_here(a_stack: Any) -> None:
    async with a_stack() as stack:
        page = await stack.http.get("/dashboard")
        assert page.status_code == 200
        assert "default-src 'none'" in page.headers["content-security-policy"]
        for path in ("/dashboard/dashboard.css", "/dashboard/dashboard.js"):
            assert path in page.text
            assert (await stack.http.get(path)).status_code == 200
        assert "http://" not in page.text
        assert "https://" not in page.text


def own_batches(snapshot: dict[str, Any]) -> list[dict[str, Any]]:
    """The broker may hold batches of other tests."""
    return [batch for batch in snapshot["batches"] if batch["batch_id"] == A_BATCH.batch_id]


async def test_a_page_gets_the_past_and_then_what_is_heard_and_stored(any_stack: Any) -> None:
    async with any_stack() as stack:
        bus = stack.bus
        await put(bus, subjects.BATCH_BUCKET, A_BATCH.batch_id, A_BATCH)
        await put(bus, subjects.PLACEMENT_BUCKET, subjects.placement_key("tiny"), A_PLACEMENT)
        async with opened(stack.http) as events:
            name, past = await anext(events)
            assert name == "history"
            assert isinstance(past, list)
            await bus.publish(subjects.notice("node-1"), encode(A_NOTICE))
            snapshot = await snapshot_where(
                events, lambda s: bool(s["notices"] and own_batches(s) and s["totals"]["gpus"])
            )
        assert snapshot["notices"][0]["node_id"] == "node-1"
        assert own_batches(snapshot)[0]["progress_percent"] == 25.0
        assert snapshot["plan"]["reason"] == "a notice"
        assert snapshot["is_broker_heard"]
        assert snapshot["totals"]["routers"] == 1


async def test_a_page_that_closes_is_counted_no_more_and_one_too_many_is_refused(
    a_stack: Any,
) -> None:
    async with a_stack() as stack:
        feed = stack.gateway.feed
        async with opened(stack.http) as events:
            await anext(events)
            assert feed.watchers == 1
        async with asyncio.timeout(5):
            while feed.watchers:
                await asyncio.sleep(0.01)
        feed.watchers = WATCHERS_MAX
        refused = await stack.http.get(EVENTS)
        assert refused.status_code == 503
        assert str(WATCHERS_MAX) in refused.json()["error"]["message"]
        feed.watchers = 0


async def test_an_open_page_does_not_keep_the_gateway_from_stopping(a_stack: Any) -> None:
    names = []
    async with httpx.AsyncClient(timeout=20) as http:
        async with a_stack(shutdown_wait_s=15) as stack:
            http.base_url = httpx.URL(stack.gateway.http_url)
            stream = opened(http)
            events = await stream.__aenter__()
            await anext(events)
            begun_at = asyncio.get_running_loop().time()
        assert asyncio.get_running_loop().time() - begun_at < 10
        names = [name async for name, _ in events]  # it ends, and well
        await stream.__aexit__(None, None, None)
    assert set(names) <= {"snapshot"}


async def test_malformed_messages_on_the_bus_leave_the_page_as_it_is(a_stack: Any) -> None:
    async with a_stack() as stack:
        bus = stack.bus
        for subject in (subjects.worker_report("w9"), subjects.notice("node-1")):
            await bus.publish(subject, b"\xc1nonsense")
        await put(bus, subjects.BATCH_BUCKET, "batch_00000002", A_NOTICE)
        await put(bus, subjects.BATCH_BUCKET, A_BATCH.batch_id, A_BATCH)
        async with opened(stack.http) as events:
            snapshot = await snapshot_where(events, lambda s: bool(s["batches"]))
        assert snapshot["notices"] == []
        assert [batch["batch_id"] for batch in snapshot["batches"]] == [A_BATCH.batch_id]
