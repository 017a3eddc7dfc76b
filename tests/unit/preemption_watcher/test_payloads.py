"""What the clouds' own words mean, and that anything else is refused by its field."""

import json
from typing import Any

import pytest

from libs.contracts.preemption import NoticeKind
from libs.kernel.errors import ContractViolation
from libs.kernel.units import NS_PER_S
from services.preemption_watcher.readings import Reading
from services.preemption_watcher.sources import aws, azure, eventbridge_sqs, kubernetes
from services.preemption_watcher.sources.instants import http_date_unix_ns, rfc3339_unix_ns

AZURE_PREEMPT: dict[str, Any] = {
    "EventId": "A123BC45-1234-5678-AB90-ABCDEF123456",
    "EventType": "Preempt",
    "ResourceType": "VirtualMachine",
    "Resources": ["gpu_0"],
    "EventStatus": "Scheduled",
    "NotBefore": "Mon, 19 Sep 2016 18:29:47 GMT",
    "Description": "",
    "EventSource": "Platform",
    "DurationInSeconds": -1,
}
SPOT_WARNING: dict[str, Any] = {
    "version": "0",
    "id": "12345678-1234-1234-1234-123456789012",
    "detail-type": "EC2 Spot Instance Interruption Warning",
    "source": "aws.ec2",
    "account": "123456789012",
    "time": "2027-01-15T08:00:00Z",
    "region": "us-east-2",
    "resources": ["arn:aws:ec2:us-east-2:123456789012:instance/i-1234567890abcdef0"],
    "detail": {"instance-id": "i-1234567890abcdef0", "instance-action": "terminate"},
}


def a_node(**changes: Any) -> dict[str, Any]:
    node = {"kind": "Node", "metadata": {"name": "gpu-1", "uid": "u-1"}, "spec": {}, "status": {}}
    return {**node, **changes}


def node_readings(node: dict[str, Any], *extra: str) -> tuple[Reading, ...]:
    return kubernetes.node_reader(extra_taints=extra, grace_ns=25 * NS_PER_S)(node)


@pytest.mark.parametrize(
    ("text", "unix_s"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("2017-09-18T08:22:00Z", 1_505_722_920),
        ("2017-09-18T10:22:00+02:00", 1_505_722_920),
    ],
)
def test_an_rfc_3339_instant_is_read_whatever_its_zone(text: str, unix_s: int) -> None:
    assert rfc3339_unix_ns(text) == unix_s * NS_PER_S


def test_an_instant_keeps_its_fraction_exactly() -> None:
    assert rfc3339_unix_ns("2027-01-15T08:00:00.123456Z") == 1_800_000_000_123_456_000


def test_an_http_date_is_read() -> None:
    assert http_date_unix_ns("Mon, 19 Sep 2016 18:29:47 GMT") == 1_474_309_787 * NS_PER_S


@pytest.mark.parametrize("text", ["", "soon", "2017-09-18T08:22:00", "2017-13-41T99:00:00Z"])
def test_what_is_no_instant_is_refused(text: str) -> None:
    with pytest.raises(ContractViolation, match="instant"):
        rfc3339_unix_ns(text)


@pytest.mark.parametrize("text", ["", "soon", "Mon, 19 Sep 2016 18:29:47"])
def test_what_is_no_http_date_is_refused(text: str) -> None:
    with pytest.raises(ContractViolation, match="instant"):
        http_date_unix_ns(text)


@pytest.mark.parametrize("action", ["terminate", "stop", "hibernate"])
def test_every_spot_action_ends_the_node_at_its_time(action: str) -> None:
    body = json.dumps({"action": action, "time": "2017-09-18T08:22:00Z"}).encode()
    reading = aws.action_reading(body)
    assert reading.kind is NoticeKind.PREEMPTION
    assert reading.deadline_at_unix_ns == 1_505_722_920 * NS_PER_S
    assert reading == aws.action_reading(body), "the same words are the same notice"


def test_another_time_is_another_notice() -> None:
    ids = {
        aws.action_reading(
            json.dumps({"action": "terminate", "time": f"2017-09-18T08:22:0{second}Z"}).encode()
        ).notice_id
        for second in range(5)
    }
    assert len(ids) == 5


def test_a_rebalance_recommendation_names_no_end() -> None:
    reading = aws.rebalance_reading(b'{"noticeTime": "2020-10-27T08:22:00Z"}')
    assert (reading.kind, reading.deadline_at_unix_ns, reading.grace_ns) == (
        NoticeKind.REBALANCE,
        None,
        None,
    )


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"", "JSON"),
        (b"<html>", "JSON"),
        (b"[1]", "object"),
        (b'{"action": "terminate"}', "time"),
        (b'{"time": "2017-09-18T08:22:00Z"}', "action"),
        (b'{"action": "dance", "time": "2017-09-18T08:22:00Z"}', "action"),
        (b'{"action": "stop", "time": 17}', "time"),
        (b'{"action": "stop", "time": "1066-10-14T09:00:00Z"}', "instant"),
        (b"[" * 100_000, "JSON"),
    ],
)
def test_a_wrong_instance_action_is_refused_by_its_field(body: bytes, field: str) -> None:
    with pytest.raises(ContractViolation, match=field):
        aws.action_reading(body)


def test_an_azure_event_is_read_with_its_instant_and_its_own_id() -> None:
    reading = azure.event_reading(AZURE_PREEMPT, vm_name="GPU_0")
    assert reading is not None
    assert reading.notice_id == "a123bc45-1234-5678-ab90-abcdef123456"
    assert reading.kind is NoticeKind.PREEMPTION
    assert reading.deadline_at_unix_ns == 1_474_309_787 * NS_PER_S
    assert reading.grace_ns is None


def test_an_azure_event_that_has_started_leaves_no_time() -> None:
    event = {**AZURE_PREEMPT, "EventStatus": "Started", "NotBefore": ""}
    reading = azure.event_reading(event, vm_name="gpu_0")
    assert reading is not None
    assert (reading.deadline_at_unix_ns, reading.grace_ns) == (None, 0)


@pytest.mark.parametrize(
    ("event_type", "kind"),
    [
        ("Preempt", NoticeKind.PREEMPTION),
        ("Terminate", NoticeKind.PREEMPTION),
        ("Reboot", NoticeKind.MAINTENANCE),
        ("Redeploy", NoticeKind.MAINTENANCE),
    ],
)
def test_azures_event_types_have_their_kinds(event_type: str, kind: NoticeKind) -> None:
    reading = azure.event_reading({**AZURE_PREEMPT, "EventType": event_type}, vm_name="gpu_0")
    assert reading is not None
    assert reading.kind is kind


@pytest.mark.parametrize(
    "changes", [{"Resources": ["gpu_1", "gpu_2"]}, {"Resources": []}, {"EventType": "Freeze"}]
)
def test_azure_events_of_other_machines_and_pauses_are_no_notice(changes: dict[str, Any]) -> None:
    assert azure.event_reading({**AZURE_PREEMPT, **changes}, vm_name="gpu_0") is None


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"EventType": "Vaporise"}, "EventType"),
        ({"EventType": None}, "EventType"),
        ({"EventId": "../../etc"}, "id"),
        ({"EventId": 7}, "EventId"),
        ({"Resources": "gpu_0"}, "Resources"),
        ({"NotBefore": "whenever"}, "instant"),
        ({"NotBefore": 5}, "NotBefore"),
    ],
)
def test_a_wrong_azure_event_is_refused_by_its_field(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(ContractViolation, match=field):
        azure.event_reading({**AZURE_PREEMPT, **changes}, vm_name="gpu_0")


def test_a_spot_warning_ends_its_instance_two_minutes_after_its_own_time() -> None:
    reading = eventbridge_sqs.event_reading(SPOT_WARNING)
    assert reading is not None
    assert reading.node_id == "i-1234567890abcdef0"
    assert reading.deadline_at_unix_ns == (1_800_000_000 + 120) * NS_PER_S


@pytest.mark.parametrize(
    ("detail_type", "detail", "kind"),
    [
        ("EC2 Instance Rebalance Recommendation", {}, NoticeKind.REBALANCE),
        (
            "EC2 Instance State-change Notification",
            {"state": "shutting-down"},
            NoticeKind.PREEMPTION,
        ),
        ("EC2 Instance State-change Notification", {"state": "running"}, None),
    ],
)
def test_the_other_events_of_ec2_are_understood(
    detail_type: str, detail: dict[str, str], kind: NoticeKind | None
) -> None:
    event = {**SPOT_WARNING, "detail-type": detail_type, "detail": {"instance-id": "i-1", **detail}}
    reading = eventbridge_sqs.event_reading(event)
    assert (None if reading is None else reading.kind) == kind


@pytest.mark.parametrize(
    "changes", [{"detail": None}, {"detail": {}}, {"detail-type": "Weather"}, {"id": None}]
)
def test_a_wrong_event_of_ec2_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ContractViolation):
        eventbridge_sqs.event_reading({**SPOT_WARNING, **changes})


@pytest.mark.parametrize(("key", "kind"), list(kubernetes.TAINTS.items()))
def test_the_taints_of_well_known_controllers_are_notices(key: str, kind: NoticeKind) -> None:
    node = a_node(spec={"taints": [{"key": key, "effect": "NoSchedule"}]})
    [reading] = node_readings(node)
    assert reading.kind is kind
    assert reading.grace_ns == (None if kind is NoticeKind.REBALANCE else 25 * NS_PER_S)


def test_taints_and_cordons_that_take_nothing_away_are_no_notice() -> None:
    taints = [
        {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"},
        {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"},
        {"key": "DeletionCandidateOfClusterAutoscaler", "value": "1", "effect": "PreferNoSchedule"},
    ]
    assert node_readings(a_node(spec={"taints": taints, "unschedulable": True})) == ()


def test_a_taint_that_the_operator_names_is_a_notice() -> None:
    node = a_node(spec={"taints": [{"key": "example.com/leaving", "effect": "NoExecute"}]})
    assert node_readings(node) == ()
    assert len(node_readings(node, "example.com/leaving")) == 1


def test_a_node_that_shuts_down_is_a_notice_and_an_unready_one_is_none() -> None:
    ready = {"type": "Ready", "status": "False", "message": "node is shutting down"}
    assert len(node_readings(a_node(status={"conditions": [ready]}))) == 1
    assert node_readings(a_node(status={"conditions": [{**ready, "message": "PLEG"}]})) == ()
    assert node_readings(a_node(status={"conditions": [{**ready, "status": "True"}]})) == ()


def test_a_pod_that_is_deleted_ends_at_its_deletion_timestamp() -> None:
    metadata = {"name": "worker-0", "uid": "u-2"}
    assert kubernetes.read_pod({"metadata": metadata}) == ()
    metadata["deletionTimestamp"] = "2027-01-15T08:00:30Z"
    [reading] = kubernetes.read_pod({"metadata": metadata})
    assert reading.deadline_at_unix_ns == 1_800_000_030 * NS_PER_S


@pytest.mark.parametrize(
    "changes",
    [
        {"metadata": None},
        {"metadata": {"name": "gpu-1"}},
        {"spec": {"taints": "many"}},
        {"spec": {"taints": [{"effect": "NoSchedule"}]}},
        {"spec": {"taints": ["x"]}},
        {"spec": ["taints"]},
        {"status": 5},
        {"status": {"conditions": 5}},
    ],
)
def test_a_wrong_node_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ContractViolation):
        node_readings(a_node(**changes))
