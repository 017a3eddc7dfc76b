"""The EC2 source against a metadata service that speaks IMDSv2: tokens, their end, 404 for none."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from libs.contracts.preemption import NoticeKind
from libs.kernel.errors import Unavailable
from libs.kernel.units import NS_PER_S
from services.preemption_watcher.sources.aws import AwsSource
from services.preemption_watcher.sources.http_client import HttpClient

Cloud = Callable[..., Any]
ACTION = {"action": "terminate", "time": "2027-01-15T08:02:00Z"}
REBALANCE = {"noticeTime": "2027-01-15T08:00:00Z"}


class Imds:
    """Tokens are needed, end after their time, and are forgotten by a restart of the service."""

    def __init__(self, reply: Any, clock: Any, *, ttl_s: int | None = None) -> None:
        self._reply = reply
        self._clock = clock
        self._ttl_s = ttl_s
        self.tokens: dict[str, int] = {}
        self.tokens_given = 0
        self.documents: dict[str, bytes] = {}
        self.status = 200
        self.broken_path = ""

    def publish(self, name: str, value: Any) -> None:
        self.documents[f"/latest/meta-data/{name}"] = json.dumps(value).encode()

    async def __call__(self, call: Any) -> Any:
        if self.status != 200:
            return self._reply(status=self.status, body=b"<html>out of\norder</html>")
        if call.path == self.broken_path:
            return self._reply(status=500)
        if call.path == "/latest/api/token":
            return self._give_token(call)
        ends_at_ns = self.tokens.get(call.headers.get("x-aws-ec2-metadata-token", ""), 0)
        if self._clock.now_ns() >= ends_at_ns:
            return self._reply(status=401)
        document = self.documents.get(call.path)
        if document is None:
            return self._reply(status=404, body=b"<?xml version='1.0'?><html>Not Found</html>")
        return self._reply(body=document)

    def _give_token(self, call: Any) -> Any:
        ttl = call.headers.get("x-aws-ec2-metadata-token-ttl-seconds", "")
        if call.method != "PUT" or not ttl.isdecimal() or not 1 <= int(ttl) <= 21_600:
            return self._reply(status=400)
        ttl_s = self._ttl_s or int(ttl)
        self.tokens_given += 1
        token = f"token-{self.tokens_given}=="
        self.tokens[token] = self._clock.now_ns() + ttl_s * NS_PER_S
        headers = {"x-aws-ec2-metadata-token-ttl-seconds": str(ttl_s)}
        return self._reply(body=token.encode(), headers=headers)


def a_source(url: str, clock: Any, **changes: Any) -> AwsSource:
    options = {"poll_interval_ns": NS_PER_S, "is_rebalance_heard": True, **changes}
    return AwsSource(HttpClient(url, setting="aws.base_url"), clock=clock, **options)


async def test_no_notice_a_recommendation_and_then_the_end(
    cloud: Cloud, reply: Any, clock: Any
) -> None:
    imds = Imds(reply, clock)
    async with cloud(imds) as url:
        source = a_source(url, clock)
        quiet = await source.poll()
        assert (quiet.readings, quiet.is_whole) == ((), True)
        imds.publish("events/recommendations/rebalance", REBALANCE)
        assert [reading.kind for reading in (await source.poll()).readings] == ["rebalance"]
        imds.publish("spot/instance-action", ACTION)
        action, rebalance = (await source.poll()).readings
        assert action.kind is NoticeKind.PREEMPTION
        assert action.deadline_at_unix_ns == 1_800_000_120 * NS_PER_S
        assert rebalance.kind is NoticeKind.REBALANCE
        assert (await source.poll()).readings == (action, rebalance)
        assert imds.tokens_given == 1
        await source.close()


async def test_a_recommendation_is_not_heard_where_nobody_wants_it(
    cloud: Cloud, reply: Any, clock: Any
) -> None:
    imds = Imds(reply, clock)
    imds.publish("events/recommendations/rebalance", REBALANCE)
    async with cloud(imds) as url:
        source = a_source(url, clock, is_rebalance_heard=False)
        assert (await source.poll()).readings == ()
        await source.close()


@pytest.mark.parametrize("ttl_s", [None, 300, 10])
async def test_a_token_is_renewed_before_it_ends(
    cloud: Cloud, reply: Any, clock: Any, ttl_s: int | None
) -> None:
    imds = Imds(reply, clock, ttl_s=ttl_s)
    async with cloud(imds) as url:
        source = a_source(url, clock)
        await source.poll()
        clock.advance((ttl_s or 21_600) * NS_PER_S - 1)
        await source.poll()
        assert imds.tokens_given == 2
        await source.close()


async def test_a_token_that_the_service_has_forgotten_is_replaced_within_the_same_poll(
    cloud: Cloud, reply: Any, clock: Any
) -> None:
    imds = Imds(reply, clock)
    imds.publish("spot/instance-action", ACTION)
    async with cloud(imds) as url:
        source = a_source(url, clock)
        await source.poll()
        imds.tokens.clear()
        assert len((await source.poll()).readings) == 1
        assert imds.tokens_given == 2
        await source.close()


async def test_a_garbled_document_hides_neither_the_other_nor_itself_once_it_is_well(
    cloud: Cloud, reply: Any, clock: Any
) -> None:
    imds = Imds(reply, clock)
    imds.publish("events/recommendations/rebalance", REBALANCE)
    imds.documents["/latest/meta-data/spot/instance-action"] = b"{'action': \xff"
    async with cloud(imds) as url:
        source = a_source(url, clock)
        observation = await source.poll()
        assert [reading.kind for reading in observation.readings] == ["rebalance"]
        assert not observation.is_whole
        assert "spot/instance-action" in observation.unreadable[0]
        imds.publish("spot/instance-action", ACTION)
        assert len((await source.poll()).readings) == 2
        await source.close()


async def test_an_interruption_does_not_wait_for_a_recommendation_that_cannot_be_read(
    cloud: Cloud, reply: Any, clock: Any
) -> None:
    imds = Imds(reply, clock)
    imds.broken_path = "/latest/meta-data/events/recommendations/rebalance"
    async with cloud(imds) as url:
        source = a_source(url, clock)
        with pytest.raises(Unavailable, match="HTTP 500"):
            await source.poll()
        imds.publish("spot/instance-action", ACTION)
        observation = await source.poll()
        assert [reading.kind for reading in observation.readings] == ["preemption"]
        assert not observation.is_whole, "a recommendation that was given may still hold"
        await source.close()


async def test_a_service_out_of_order_is_unavailable_on_one_line(
    cloud: Cloud, reply: Any, clock: Any
) -> None:
    imds = Imds(reply, clock)
    imds.status = 503
    async with cloud(imds) as url:
        source = a_source(url, clock)
        with pytest.raises(Unavailable, match="HTTP 503: <html>out of order</html>"):
            await source.poll()
        imds.status = 200
        assert (await source.poll()).is_whole
        await source.close()


async def test_nobody_there_is_unavailable(clock: Any) -> None:
    source = a_source("http://127.0.0.1:9", clock)
    with pytest.raises(Unavailable):
        await source.poll()
    await source.close()


async def test_an_answer_that_comes_in_drops_is_given_up_after_the_time_for_the_whole(
    cloud: Cloud, reply: Any
) -> None:
    async def drops() -> Any:
        while True:
            await asyncio.sleep(0.01)
            yield b" "

    async def dripping(_: Any) -> Any:
        return reply(more=drops())

    async with cloud(dripping) as url:
        client = HttpClient(url, setting="x")
        with pytest.raises(Unavailable, match=r"no answer in 0\.2 s"):
            await client.send("GET", "/", timeout_ns=NS_PER_S // 5)
        await client.close()
