"""The Azure source against a Scheduled Events endpoint: events, their start, their approval."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from libs.contracts.preemption import NoticeKind
from libs.kernel.errors import ContractViolation, Unavailable
from libs.kernel.units import NS_PER_S
from services.preemption_watcher.sources.azure import AzureSource
from services.preemption_watcher.sources.http_client import HttpClient

Cloud = Callable[..., Any]
PREEMPT: dict[str, Any] = {
    "EventId": "A123BC45-1234-5678-AB90-ABCDEF123456",
    "EventStatus": "Scheduled",
    "EventType": "Preempt",
    "ResourceType": "VirtualMachine",
    "Resources": ["gpu_0"],
    "NotBefore": "Fri, 15 Jan 2027 08:00:30 GMT",
    "Description": "",
    "EventSource": "Platform",
    "DurationInSeconds": -1,
}
NOTICE_ID = "a123bc45-1234-5678-ab90-abcdef123456"


class ScheduledEvents:
    """Follows the documented schema; a Preempt event was never captured from a real machine."""

    def __init__(self, reply: Any, *events: dict[str, Any]) -> None:
        self._reply = reply
        self.events = list(events)
        self.approved: list[str] = []
        self.status = 200

    async def __call__(self, call: Any) -> Any:
        if call.headers.get("metadata") != "true" or "api-version" not in call.query:
            return self._reply(status=400, body=b"Bad request: Metadata header is required")
        if call.path == "/metadata/instance/compute/name":
            return self._reply(body=b"gpu_0")
        if self.status != 200:
            return self._reply(status=self.status)
        if call.method == "POST":
            return self._approve(json.loads(call.body))
        return self._reply.of_json({"DocumentIncarnation": 1, "Events": self.events})

    def _approve(self, body: Any) -> Any:
        ids = [request["EventId"] for request in body["StartRequests"]]
        if not set(ids) <= {event["EventId"] for event in self.events}:
            return self._reply(status=400)
        self.approved += ids
        for event in self.events:
            if event["EventId"] in ids:
                event.update(EventStatus="Started", NotBefore="")
        return self._reply()


def a_source(url: str, *, vm_name: str | None = None) -> AzureSource:
    client = HttpClient(url, setting="azure.base_url")
    return AzureSource(client, poll_interval_ns=NS_PER_S, vm_name=vm_name)


async def test_a_preemption_is_given_approved_and_then_starts(cloud: Cloud, reply: Any) -> None:
    service = ScheduledEvents(reply)
    async with cloud(service) as url:
        source = a_source(url)
        assert (await source.poll()).readings == ()
        service.events = [dict(PREEMPT)]
        [reading] = (await source.poll()).readings
        assert (reading.notice_id, reading.kind) == (NOTICE_ID, NoticeKind.PREEMPTION)
        assert reading.deadline_at_unix_ns == 1_800_000_030 * NS_PER_S
        await source.confirm(NOTICE_ID)
        assert service.approved == [PREEMPT["EventId"]]
        [reading] = (await source.poll()).readings
        assert (reading.notice_id, reading.grace_ns) == (NOTICE_ID, 0)
        service.events = []
        assert await source.poll() == type(await source.poll())()
        await source.confirm(NOTICE_ID)
        assert len(service.approved) == 1, "what is over is not approved again"
        await source.close()


async def test_events_of_other_machines_are_not_ours(cloud: Cloud, reply: Any) -> None:
    service = ScheduledEvents(reply, {**PREEMPT, "Resources": ["gpu_7"]})
    async with cloud(service) as url:
        source = a_source(url)
        assert (await source.poll()).readings == ()
        await source.close()


async def test_an_event_about_other_machines_too_is_given_but_never_approved(
    cloud: Cloud, reply: Any
) -> None:
    service = ScheduledEvents(reply, {**PREEMPT, "Resources": ["gpu_0", "gpu_7"]})
    async with cloud(service) as url:
        source = a_source(url)
        assert len((await source.poll()).readings) == 1
        with pytest.raises(ContractViolation, match="other machines"):
            await source.confirm(NOTICE_ID)
        assert service.approved == []
        await source.close()


async def test_an_approval_that_azure_does_not_take_is_unavailable(
    cloud: Cloud, reply: Any
) -> None:
    service = ScheduledEvents(reply, dict(PREEMPT))
    async with cloud(service) as url:
        source = a_source(url)
        await source.poll()
        service.status = 500
        with pytest.raises(Unavailable, match="500"):
            await source.confirm(NOTICE_ID)
        service.status = 200
        await source.confirm(NOTICE_ID)
        assert service.approved == [PREEMPT["EventId"]]
        await source.close()


async def test_one_garbled_event_hides_no_other_and_withdraws_nothing(
    cloud: Cloud, reply: Any
) -> None:
    service = ScheduledEvents(reply, {"EventType": "Preempt"}, dict(PREEMPT), {"EventId": 3})
    async with cloud(service) as url:
        source = a_source(url, vm_name="GPU_0")
        observation = await source.poll()
        assert len(observation.readings) == 1
        assert len(observation.unreadable) == 2
        assert not observation.is_whole
        await source.close()


@pytest.mark.parametrize("events", [None, "none", {"EventId": "x"}])
async def test_a_document_without_a_list_of_events_is_refused(
    cloud: Cloud, reply: Any, events: Any
) -> None:
    service = ScheduledEvents(reply)
    service.events = events
    async with cloud(service) as url:
        source = a_source(url)
        with pytest.raises(ContractViolation, match="Events"):
            await source.poll()
        await source.close()
