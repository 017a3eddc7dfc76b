"""The in-memory broker under a clock that the test turns by hand."""

import pytest

from libs.kernel.errors import ContractViolation
from libs.kernel.units import NS_PER_S
from libs.runtime.bus import (
    BusMessage,
    ConsumerOptions,
    StreamFull,
    StreamOptions,
    WrongLastSequence,
)
from libs.runtime.memory_broker import MemoryBroker
from libs.runtime.memory_consumer import MemoryLease


def a_broker(**changes: object) -> MemoryBroker:
    broker = MemoryBroker()
    options: dict[str, object] = {
        "name": "jobs",
        "subjects": ("jobs.>",),
        "messages_max": 10,
        "bytes_max": 10_000,
        "age_max_ns": None,
        "retention": "work_queue",
    }
    broker.ensure_stream(StreamOptions(**(options | changes)), now_ns=0)
    broker.ensure_consumer(
        ConsumerOptions(
            stream="jobs",
            durable="w",
            filter_subject="jobs.>",
            ack_wait_ns=10 * NS_PER_S,
            deliveries_max=3,
            leases_max=2,
        ),
        now_ns=0,
    )
    return broker


def fetch(broker: MemoryBroker, *, at_s: float, count: int = 10) -> list[MemoryLease]:
    return broker.fetch("jobs", "w", count, now_ns=round(at_s * NS_PER_S))


def test_a_lease_runs_out_exactly_at_its_ack_wait():
    broker = a_broker()
    broker.append("jobs.1", b"", now_ns=0)
    assert len(fetch(broker, at_s=0)) == 1
    assert broker.next_due_at_ns("jobs", "w") == 10 * NS_PER_S
    assert broker.fetch("jobs", "w", 1, now_ns=10 * NS_PER_S - 1) == []
    [again] = fetch(broker, at_s=10)
    assert again.delivery_count == 2


def test_in_progress_starts_the_wait_anew():
    broker = a_broker()
    broker.append("jobs.1", b"", now_ns=0)
    [lease] = fetch(broker, at_s=0)
    broker.in_progress(lease, now_ns=9 * NS_PER_S)
    assert fetch(broker, at_s=18.9) == []
    assert broker.next_due_at_ns("jobs", "w") == 19 * NS_PER_S
    assert len(fetch(broker, at_s=19)) == 1


def test_a_nak_counts_its_delay_from_the_nak():
    broker = a_broker()
    broker.append("jobs.1", b"", now_ns=0)
    [lease] = fetch(broker, at_s=0)
    broker.nak(lease, delay_ns=3 * NS_PER_S, now_ns=NS_PER_S)
    assert fetch(broker, at_s=3.9) == []
    assert len(fetch(broker, at_s=4)) == 1


def test_an_earlier_holder_may_still_acknowledge():
    broker = a_broker()
    broker.append("jobs.1", b"", now_ns=0)
    [first] = fetch(broker, at_s=0)
    [_second] = fetch(broker, at_s=10)
    broker.ack(first)
    assert fetch(broker, at_s=30) == []
    assert broker.stream_state("jobs", now_ns=0).messages == 0


def test_redeliveries_go_before_new_messages_and_beyond_the_bound_on_leases():
    broker = a_broker()
    for number in range(3):
        broker.append("jobs.1", b"%d" % number, now_ns=0)
    assert [lease.message.payload for lease in fetch(broker, at_s=0)] == [b"0", b"1"]
    leases = fetch(broker, at_s=10)
    assert [(lease.message.payload, lease.delivery_count) for lease in leases] == [
        (b"0", 2),
        (b"1", 2),
    ]


def test_an_exhausted_message_is_announced_once_and_frees_its_place():
    broker = a_broker()
    watcher = broker.subscribe("$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.jobs.w")
    for number in range(3):
        broker.append("jobs.1", b"%d" % number, now_ns=0)
    for at_s in (0, 10, 20):
        assert len(fetch(broker, at_s=at_s)) == 2
    assert [lease.message.payload for lease in fetch(broker, at_s=30)] == [b"2"]
    advisories = [d for d in broker.take_deliveries() if d.subscription_id == watcher]
    assert len(advisories) == 2
    assert broker.stream_state("jobs", now_ns=0).messages == 3


def test_many_signs_of_progress_do_not_grow_the_agenda():
    broker = a_broker()
    broker.append("jobs.1", b"", now_ns=0)
    [lease] = fetch(broker, at_s=0)
    for second in range(10_000):
        broker.in_progress(lease, now_ns=second * NS_PER_S)
    assert len(broker._consumers["jobs", "w"]._agenda) < 200


def test_a_message_deleted_while_leased_does_not_come_again():
    broker = a_broker()
    broker.append("jobs.1", b"", now_ns=0)
    fetch(broker, at_s=0)
    broker.delete_message("jobs", 1, now_ns=0)
    assert fetch(broker, at_s=10) == []
    assert broker.next_due_at_ns("jobs", "w") is None


def test_age_and_the_duplicate_window_follow_the_given_time():
    broker = a_broker(age_max_ns=5 * NS_PER_S, duplicate_window_ns=2 * NS_PER_S)
    broker.append("jobs.1", b"", message_id="m", now_ns=0)
    assert broker.append("jobs.1", b"", message_id="m", now_ns=2 * NS_PER_S - 1).is_duplicate
    assert not broker.append("jobs.1", b"", message_id="m", now_ns=2 * NS_PER_S).is_duplicate
    assert broker.stream_state("jobs", now_ns=5 * NS_PER_S - 1).messages == 2
    assert broker.stream_state("jobs", now_ns=5 * NS_PER_S).messages == 1
    assert broker.stream_state("jobs", now_ns=7 * NS_PER_S).first_sequence == 3


def test_a_refused_append_changes_nothing():
    broker = a_broker(messages_max=2, messages_per_subject_max=1)
    broker.append("jobs.1", b"", now_ns=0)
    broker.append("jobs.2", b"", now_ns=0)
    before = broker.stream_state("jobs", now_ns=0)
    with pytest.raises(StreamFull):
        broker.append("jobs.3", b"", now_ns=0, message_id="m")
    with pytest.raises(WrongLastSequence):
        broker.append("jobs.1", b"", now_ns=0, expected_last_subject_sequence=7)
    assert broker.stream_state("jobs", now_ns=0) == before
    broker.append("jobs.1", b"", now_ns=0)
    assert not broker.append("jobs.2", b"", now_ns=0, message_id="m").is_duplicate
    broker.check()


def test_a_shrunken_stream_drops_its_oldest():
    broker = a_broker()
    for _ in range(5):
        broker.append("jobs.1", b"", now_ns=0)
    broker.ensure_stream(
        StreamOptions(
            name="jobs",
            subjects=("jobs.>",),
            messages_max=2,
            bytes_max=10_000,
            age_max_ns=None,
            retention="work_queue",
        ),
        now_ns=0,
    )
    assert broker.stream_state("jobs", now_ns=0).first_sequence == 4
    broker.check()


def test_the_members_of_a_queue_group_take_turns():
    broker = MemoryBroker()
    ids = [broker.subscribe("a", queue_group="g") for _ in range(3)]
    for _ in range(6):
        assert broker.publish(BusMessage(subject="a", payload=b""), now_ns=0) == 1
    assert [d.subscription_id for d in broker.take_deliveries()] == ids * 2
    broker.unsubscribe(ids[0])
    broker.publish(BusMessage(subject="a", payload=b""), now_ns=0)
    assert broker.take_deliveries()[0].subscription_id in ids[1:]


def test_a_publish_into_a_full_stream_is_refused_on_the_reply_subject_only():
    broker = a_broker(messages_max=1)
    replies = broker.subscribe("reply")
    for _ in range(2):
        broker.publish(BusMessage(subject="jobs.1", payload=b"", reply_to="reply"), now_ns=0)
    answers = [d.message.payload for d in broker.take_deliveries() if d.subscription_id == replies]
    assert b'"seq": 1' in answers[0]
    assert b"error" in answers[1]


def test_a_malformed_expected_sequence_is_the_peers_fault():
    broker = a_broker()
    headers = {"Nats-Expected-Last-Subject-Sequence": "many"}
    with pytest.raises(ContractViolation):
        broker.publish(BusMessage(subject="jobs.1", payload=b"", headers=headers), now_ns=0)


def test_watching_keys_needs_no_more_than_a_subscription_and_a_snapshot():
    broker = MemoryBroker()
    keys = broker.ensure_bucket("b", bytes_max=1000, now_ns=0)
    keys.put("a", b"1", now_ns=0)
    subscription = broker.subscribe(keys.watch_subject(">"))
    assert [event.revision for event in keys.snapshot(">", now_ns=0)] == [1]
    keys.update("a", b"2", revision=1, now_ns=0)
    [delivery] = broker.take_deliveries()
    assert (delivery.subscription_id, delivery.sequence) == (subscription, 2)
