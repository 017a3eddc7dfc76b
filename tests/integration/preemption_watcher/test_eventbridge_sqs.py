"""The queue source against SQS' JSON protocol: long polls, visibility, deletion, signatures."""

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from libs.kernel.errors import Unavailable
from libs.kernel.units import NS_PER_S
from services.preemption_watcher.sources.eventbridge_sqs import SqsSource

Cloud = Callable[..., Any]
SIGNATURE = re.compile(
    r"AWS4-HMAC-SHA256 Credential=test-key/\d{8}/eu-west-1/sqs/aws4_request, "
    r"SignedHeaders=[a-z0-9;-]*host[a-z0-9;-]*, Signature=[0-9a-f]{64}"
)


class Queue:
    """Hands a message out until it is deleted; asks for a signature."""

    def __init__(self, reply: Any) -> None:
        self._reply = reply
        self.messages: dict[str, str] = {}
        self.deleted: list[str] = []
        self.status = 200

    def put(self, body: Any) -> None:
        text = body if isinstance(body, str) else json.dumps(body)
        self.messages[f"receipt-{len(self.messages) + len(self.deleted)}"] = text

    async def __call__(self, call: Any) -> Any:
        if not SIGNATURE.fullmatch(call.headers.get("authorization", "")):
            return self._reply.of_json({"__type": "AccessDeniedException"}, status=403)
        if self.status != 200:
            return self._reply.of_json({"__type": "com.amazonaws.sqs#Oops"}, status=self.status)
        assert call.headers["content-type"] == "application/x-amz-json-1.0"
        body = json.loads(call.body)
        assert body["QueueUrl"].endswith("/123456789012/spot")
        match call.headers["x-amz-target"]:
            case "AmazonSQS.ReceiveMessage":
                assert (body["WaitTimeSeconds"], body["MaxNumberOfMessages"]) == (20, 10)
                received = [
                    {"MessageId": handle, "ReceiptHandle": handle, "Body": text}
                    for handle, text in list(self.messages.items())[:10]
                ]
                # SQS leaves the field out where there is nothing.
                return self._reply.of_json({"Messages": received} if received else {})
            case "AmazonSQS.DeleteMessageBatch":
                for entry in body["Entries"]:
                    self.deleted.append(entry["ReceiptHandle"])
                    del self.messages[entry["ReceiptHandle"]]
                return self._reply.of_json({"Successful": [], "Failed": []})
            case _:
                return self._reply(status=400)


def a_warning(clock: Any, *, age_s: int = 0, instance: str = "i-0abc") -> dict[str, Any]:
    at = datetime.fromtimestamp(clock.now_unix_ns() // NS_PER_S - age_s, tz=UTC)
    return {
        "version": "0",
        "id": "12345678-1234-1234-1234-123456789012",
        "detail-type": "EC2 Spot Instance Interruption Warning",
        "source": "aws.ec2",
        "time": at.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "detail": {"instance-id": instance, "instance-action": "terminate"},
    }


@pytest.fixture(autouse=True)
def _credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test-key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of no use anywhere")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def a_source(url: str, clock: Any) -> SqsSource:
    return SqsSource(f"{url}/123456789012/spot", region="eu-west-1", clock=clock)


async def test_a_warning_names_its_node_and_is_deleted_only_after_it_was_handed_over(
    cloud: Cloud, reply: Any, clock: Any
) -> None:
    queue = Queue(reply)
    queue.put(a_warning(clock, instance="i-0ABC"))
    async with cloud(queue) as url:
        source = a_source(url, clock)
        observation = await source.poll()
        [reading] = observation.readings
        assert reading.node_id == "i-0abc"
        assert reading.deadline_at_unix_ns == clock.now_unix_ns() + 120 * NS_PER_S
        assert not observation.is_whole, "a queue tells of each notice once"
        assert queue.deleted == []
        assert (await source.poll()).readings == ()
        assert queue.deleted == ["receipt-0"]
        await source.close()


async def test_garbage_is_left_to_the_dead_letter_policy_and_hides_no_warning(
    cloud: Cloud, reply: Any, clock: Any
) -> None:
    queue = Queue(reply)
    queue.put("not json")
    queue.put({"detail-type": "Weather", "time": "2027-01-15T08:00:00Z"})
    queue.put(a_warning(clock))
    async with cloud(queue) as url:
        source = a_source(url, clock)
        observation = await source.poll()
        assert len(observation.readings) == 1
        assert len(observation.unreadable) == 2
        await source.poll()
        assert queue.deleted == ["receipt-2"]
        await source.close()


async def test_a_warning_of_an_instance_long_gone_is_deleted_unread(
    cloud: Cloud, reply: Any, clock: Any
) -> None:
    queue = Queue(reply)
    queue.put(a_warning(clock, age_s=901))
    queue.put(a_warning(clock, age_s=899))
    async with cloud(queue) as url:
        source = a_source(url, clock)
        assert len((await source.poll()).readings) == 1
        await source.poll()
        assert queue.deleted == ["receipt-0", "receipt-1"]
        await source.close()


async def test_a_deletion_that_fails_is_tried_again_before_more_is_received(
    cloud: Cloud, reply: Any, clock: Any
) -> None:
    queue = Queue(reply)
    queue.put(a_warning(clock))
    async with cloud(queue) as url:
        source = a_source(url, clock)
        await source.poll()
        queue.status = 500
        with pytest.raises(Unavailable, match="HTTP 500"):
            await source.poll()
        queue.status = 200
        await source.poll()
        assert queue.deleted == ["receipt-0"]
        await source.close()


async def test_without_credentials_the_queue_is_unavailable(
    cloud: Cloud, reply: Any, clock: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    async with cloud(Queue(reply)) as url:
        source = a_source(url, clock)
        with pytest.raises(Unavailable, match="credentials"):
            await source.poll()
        await source.close()
