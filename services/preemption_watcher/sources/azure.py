"""Azure: Scheduled Events of the instance metadata service.

One document lists the events of the whole placement group; those that name this VM are ours. An
event has an id, the instant before which it does not start (blank once it has started), and may be
approved: then Azure need not wait. Freeze, a pause of seconds, is no end of the node and no notice.
Source: learn.microsoft.com, "Azure Metadata Service: Scheduled Events for Linux VMs".
"""

import json
from collections.abc import Mapping
from typing import Any, Final

from libs.contracts.preemption import NoticeKind
from libs.kernel.errors import ContractViolation, Unavailable
from libs.kernel.units import NS_PER_S
from services.preemption_watcher.options import SourceOptions
from services.preemption_watcher.readings import Observation, Reading
from services.preemption_watcher.sources.http_client import (
    RETRY_AFTER_NS,
    HttpClient,
    json_object,
    text_field,
    unexpected,
)
from services.preemption_watcher.sources.instants import http_date_unix_ns

NAME: Final = "azure"
EVENTS_PATH: Final = "/metadata/scheduledevents?api-version=2020-07-01"
NAME_PATH: Final = "/metadata/instance/compute/name?api-version=2021-02-01&format=text"
HEADERS: Final = {"Metadata": "true"}
FIRST_TIMEOUT_NS: Final = 150 * NS_PER_S
"""The first call turns the service on, which may take two minutes."""
TIMEOUT_NS: Final = 10 * NS_PER_S
KINDS: Final = {
    "Preempt": NoticeKind.PREEMPTION,
    "Terminate": NoticeKind.PREEMPTION,
    "Reboot": NoticeKind.MAINTENANCE,
    "Redeploy": NoticeKind.MAINTENANCE,
}
PAUSES: Final = frozenset({"Freeze"})


class AzureSource:
    """Polls the events of one VM and approves them when told."""

    def __init__(self, client: HttpClient, *, poll_interval_ns: int, vm_name: str | None) -> None:
        self._client = client
        self._vm_name = vm_name
        self._has_answered = False
        self._events: dict[str, Mapping[str, Any]] = {}
        self.options = SourceOptions(name=NAME, poll_interval_ns=poll_interval_ns, can_confirm=True)

    async def poll(self) -> Observation:
        """See NoticeSource.poll."""
        vm_name = await self._own_name()
        answer = await self._client.send(
            "GET",
            EVENTS_PATH,
            headers=HEADERS,
            timeout_ns=TIMEOUT_NS if self._has_answered else FIRST_TIMEOUT_NS,
        )
        if answer.status != 200:
            raise unexpected(answer)
        self._has_answered = True
        listed = json_object(answer.body).get("Events")
        if not isinstance(listed, list):
            raise ContractViolation("Events: must be a list")
        return self._observe(listed, vm_name)

    async def confirm(self, notice_id: str) -> None:
        """Approve the event. It is approved for all VMs that it names, so only if that is ours."""
        event = self._events.get(notice_id)
        if event is None:
            return  # It is over; there is nothing left to approve.
        if len(event["Resources"]) > 1:
            raise ContractViolation("the event is about other machines, too")
        body = json.dumps({"StartRequests": [{"EventId": event["EventId"]}]}).encode()
        headers = {**HEADERS, "Content-Type": "application/json"}
        answer = await self._client.send(
            "POST", EVENTS_PATH, headers=headers, content=body, timeout_ns=TIMEOUT_NS
        )
        if answer.status != 200:
            raise unexpected(answer)

    async def close(self) -> None:
        """See NoticeSource.close."""
        await self._client.close()

    async def _own_name(self) -> str:
        if self._vm_name is None:
            answer = await self._client.send(
                "GET", NAME_PATH, headers=HEADERS, timeout_ns=TIMEOUT_NS
            )
            if answer.status != 200:
                raise unexpected(answer)
            name = answer.text().strip()
            if not name:
                raise Unavailable("the VM has no name yet", retry_after_ns=RETRY_AFTER_NS)
            self._vm_name = name
        return self._vm_name

    def _observe(self, listed: list[Any], vm_name: str) -> Observation:
        readings: list[Reading] = []
        unreadable: list[str] = []
        events: dict[str, Mapping[str, Any]] = {}
        for event in listed:
            try:
                reading = event_reading(event, vm_name=vm_name)
            except ContractViolation as violation:
                unreadable.append(f"Events: {violation}")
                continue
            if reading is not None:
                readings.append(reading)
                events[reading.notice_id] = event
        self._events = events
        return Observation(
            readings=tuple(readings), unreadable=tuple(unreadable), is_whole=not unreadable
        )


def event_reading(event: Any, *, vm_name: str) -> Reading | None:
    """Read one event; None if it is about other machines or a pause. Raises: ContractViolation."""
    if not isinstance(event, dict):
        raise ContractViolation("an event that is no object")
    event_type = text_field(event, "EventType")
    resources = event.get("Resources")
    if not isinstance(resources, list) or not all(isinstance(name, str) for name in resources):
        raise ContractViolation("Resources: must be a list of names")
    if event_type in PAUSES or vm_name.lower() not in (name.lower() for name in resources):
        return None
    if event_type not in KINDS:
        raise ContractViolation(f"EventType: unknown: {event_type[:60]!r}")
    status = text_field(event, "EventStatus")
    not_before = event.get("NotBefore") or ""
    if not isinstance(not_before, str):
        raise ContractViolation("NotBefore: must be text")
    return Reading(
        notice_id=text_field(event, "EventId").lower(),
        kind=KINDS[event_type],
        deadline_at_unix_ns=http_date_unix_ns(not_before) if not_before else None,
        grace_ns=0 if status == "Started" else None,
        detail=f"Azure: {event_type}, {status}: {event.get('Description') or 'no reason given'}",
    )
