"""EC2 Spot interruption warnings of a whole account, from EventBridge through one SQS queue.

One watcher for a fleet, instead of one per node: each event names its instance, whose id in lower
case is the node's id. Warnings leave two minutes from the event's own time on. A message is deleted
one poll after it was handed over; one that cannot be understood is left to the queue's dead-letter
policy. Requests are signed with botocore's credentials, which come from wherever it looks for them.
Source: the EC2 user guide, "Spot Instance interruption notices"; the SQS API reference.
"""

import asyncio
import json
from collections.abc import Mapping
from typing import Any, Final

import httpx
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.exceptions import BotoCoreError
from botocore.session import Session

from libs.contracts.preemption import NoticeKind
from libs.kernel.errors import ConfigError, ContractViolation, Unavailable
from libs.kernel.units import NS_PER_MS, NS_PER_S
from libs.runtime.clock import Clock
from services.preemption_watcher.options import SourceOptions
from services.preemption_watcher.readings import Observation, Reading
from services.preemption_watcher.sources.http_client import (
    RETRY_AFTER_NS,
    TIMEOUT_NS,
    HttpClient,
    json_object,
    text_field,
    unexpected,
)
from services.preemption_watcher.sources.instants import rfc3339_unix_ns

NAME: Final = "eventbridge-sqs"
MESSAGES_MAX: Final = 10
"""What SQS hands out at a time, at most."""
WAIT_S: Final = 20
"""The longest that SQS lets one wait for a message."""
POLL_INTERVAL_NS: Final = 100 * NS_PER_MS
WARNING_NS: Final = 120 * NS_PER_S
"""From the event's time to the end of the instance."""
EVENT_AGE_MAX_NS: Final = 900 * NS_PER_S
"""An older event tells of an instance that is long gone; it is deleted unread."""
STATES_ENDING: Final = frozenset({"stopping", "shutting-down"})


class SqsSource:
    """Receives from one queue."""

    def __init__(self, queue_url: str, *, region: str, clock: Clock) -> None:
        self._client = HttpClient(queue_url, setting="sqs.queue_url", uses_proxies=True)
        url = httpx.URL(queue_url)
        self._queue_url = queue_url
        self._endpoint = f"{url.scheme}://{url.netloc.decode()}/"
        self._region = region or _region_of(url)
        self._clock = clock
        self._session = Session()
        self._handed_over: list[str] = []
        self.options = SourceOptions(name=NAME, poll_interval_ns=POLL_INTERVAL_NS, tells_once=True)

    async def poll(self) -> Observation:
        """Wait for messages; see NoticeSource.poll."""
        await self._delete_handed_over()
        answer = await self._call(
            "ReceiveMessage",
            {"MaxNumberOfMessages": MESSAGES_MAX, "WaitTimeSeconds": WAIT_S},
            timeout_ns=WAIT_S * NS_PER_S + TIMEOUT_NS,
        )
        messages = answer.get("Messages") or []
        if not isinstance(messages, list):
            raise ContractViolation("Messages: must be a list")
        readings: list[Reading] = []
        unreadable: list[str] = []
        for message in messages:
            try:
                reading = self._read(message)
                self._handed_over.append(text_field(message, "ReceiptHandle"))
            except ContractViolation as violation:
                unreadable.append(f"Messages: {violation}")
                continue
            if reading is not None:
                readings.append(reading)
        return Observation(readings=tuple(readings), unreadable=tuple(unreadable), is_whole=False)

    async def confirm(self, notice_id: str) -> None:
        """EC2 does not want to know."""

    async def close(self) -> None:
        """See NoticeSource.close."""
        await self._client.close()

    def _read(self, message: Any) -> Reading | None:
        if not isinstance(message, dict):
            raise ContractViolation("a message that is no object")
        event = json_object(text_field(message, "Body"))
        age_ns = self._clock.now_unix_ns() - rfc3339_unix_ns(text_field(event, "time"))
        return event_reading(event) if age_ns <= EVENT_AGE_MAX_NS else None

    async def _delete_handed_over(self) -> None:
        """The watcher has given these notices: by now they have been published at least once."""
        handles = self._handed_over[:MESSAGES_MAX]
        if not handles:
            return
        entries = [{"Id": str(index), "ReceiptHandle": one} for index, one in enumerate(handles)]
        await self._call("DeleteMessageBatch", {"Entries": entries}, timeout_ns=TIMEOUT_NS)
        # What SQS failed to delete it hands out again, and then it is deleted again.
        del self._handed_over[: len(handles)]

    async def _call(
        self, action: str, arguments: Mapping[str, object], *, timeout_ns: int
    ) -> dict[str, Any]:
        content = json.dumps({"QueueUrl": self._queue_url, **arguments}).encode()
        headers = {
            "Content-Type": "application/x-amz-json-1.0",
            "X-Amz-Target": f"AmazonSQS.{action}",
        }
        # Looking for credentials may ask a metadata server, and blocks while it does.
        signed = await asyncio.to_thread(self._signed, headers, content)
        answer = await self._client.send(
            "POST", self._endpoint, headers=signed, content=content, timeout_ns=timeout_ns
        )
        if answer.status != 200:
            raise unexpected(answer)
        return json_object(answer.body)

    def _signed(self, headers: Mapping[str, str], content: bytes) -> dict[str, str]:
        try:
            credentials = self._session.get_credentials()
            if credentials is None:
                raise Unavailable("there are no AWS credentials", retry_after_ns=RETRY_AFTER_NS)
            request = AWSRequest("POST", self._endpoint, data=content, headers=dict(headers))
            SigV4Auth(credentials.get_frozen_credentials(), "sqs", self._region).add_auth(request)
        except BotoCoreError as error:
            raise Unavailable(f"AWS credentials: {error}", retry_after_ns=RETRY_AFTER_NS) from None
        return dict(request.headers.items())


def event_reading(event: Mapping[str, Any]) -> Reading | None:
    """Read one EventBridge event; None if it ends no node. Raises: ContractViolation."""
    detail = event.get("detail")
    if not isinstance(detail, dict):
        raise ContractViolation("detail: must be an object")
    node_id = text_field(detail, "instance-id").lower()
    notice_id = text_field(event, "id").lower()
    time = text_field(event, "time")
    match text_field(event, "detail-type"):
        case "EC2 Spot Instance Interruption Warning":
            action = text_field(detail, "instance-action")
            return Reading(
                notice_id=notice_id,
                node_id=node_id,
                kind=NoticeKind.PREEMPTION,
                deadline_at_unix_ns=rfc3339_unix_ns(time) + WARNING_NS,
                detail=f"EC2 will {action} the instance two minutes after {time}",
            )
        case "EC2 Instance Rebalance Recommendation":
            return Reading(
                notice_id=notice_id,
                node_id=node_id,
                kind=NoticeKind.REBALANCE,
                detail=f"EC2 recommends to rebalance since {time}",
            )
        case "EC2 Instance State-change Notification":
            state = text_field(detail, "state")
            if state not in STATES_ENDING:
                return None
            return Reading(
                notice_id=notice_id,
                node_id=node_id,
                kind=NoticeKind.PREEMPTION,
                grace_ns=0,
                detail=f"the instance is {state}",
            )
        case unknown:
            raise ContractViolation(f"detail-type: unknown: {unknown[:60]!r}")


def _region_of(url: httpx.URL) -> str:
    """Return the region in `sqs.<region>.amazonaws.com`. Raises: ConfigError."""
    parts = url.host.split(".")
    if len(parts) < 4 or parts[0] != "sqs" or parts[2] != "amazonaws":
        raise ConfigError("sqs.region: must be set: the queue's URL does not tell it")
    return parts[1]
