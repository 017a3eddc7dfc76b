"""Laws of the watcher: no payload breaks it, and what it gives follows what its sources say."""

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from libs.contracts.preemption import NoticeKind, NoticeWithdrawn, PreemptionNotice
from libs.kernel.core import SetTimer, TimerFired
from libs.kernel.errors import ContractViolation
from libs.kernel.units import NS_PER_S
from services.preemption_watcher.commands import PollSource, PublishNotice, TellWorkers
from services.preemption_watcher.core import WatcherCore
from services.preemption_watcher.events import SourceFailed, SourceObserved, WatcherStarted
from services.preemption_watcher.options import SourceOptions, WatcherOptions
from services.preemption_watcher.readings import Observation, Reading
from services.preemption_watcher.sources import aws, azure, eventbridge_sqs, kubernetes
from services.preemption_watcher.sources.instants import http_date_unix_ns, rfc3339_unix_ns

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["terminate", "Preempt", "Started", "2027-01-15T08:00:00Z", "gpu_0", "a-1"])
)
FIELD_NAMES = (
    "action", "time", "noticeTime", "metadata", "uid", "spec", "taints", "key", "status",
    "conditions", "type", "message", "detail", "id", "instance-id", "detail-type",
    "deletionTimestamp", "EventId", "EventType", "EventStatus", "Resources", "NotBefore",
)  # fmt: skip
FIELDS = st.sampled_from(FIELD_NAMES)
VALUES: st.SearchStrategy[Any] = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(FIELDS, inner, max_size=6),
    max_leaves=15,
)
OBJECTS = st.dictionaries(FIELDS, VALUES, max_size=6)
IDS = st.sampled_from(["a", "b", "c"])
ANSWERS = st.tuples(st.booleans(), st.dictionaries(IDS, st.integers(-100, 100)))
POLLS = st.lists(st.none() | ANSWERS, max_size=12)
"""Failures, and answers that are whole or not, with the seconds that are left of each notice."""


@settings(max_examples=80, deadline=None)
@given(value=OBJECTS)
def test_whatever_a_cloud_sends_is_read_or_refused(value: dict[str, Any]) -> None:
    read_node = kubernetes.node_reader(extra_taints=(), grace_ns=1)
    for read in (
        lambda: aws.action_reading(json.dumps(value).encode()),
        lambda: aws.rebalance_reading(json.dumps(value).encode()),
        lambda: azure.event_reading(value, vm_name="gpu_0"),
        lambda: eventbridge_sqs.event_reading(value),
        lambda: read_node(value),
        lambda: kubernetes.read_pod(value),
    ):
        try:
            read()
        except ContractViolation:
            continue


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=30) | st.text("0123456789-:TZ+. ", max_size=30))
def test_whatever_stands_for_an_instant_is_read_or_refused(text: str) -> None:
    for read in (rfc3339_unix_ns, http_date_unix_ns):
        try:
            read(text)
        except ContractViolation:
            continue


@settings(max_examples=100, deadline=None)
@given(polls=POLLS)
def test_after_any_run_of_polls_everybody_believes_what_the_source_said_last(
    polls: list[tuple[bool, dict[str, int]] | None],
) -> None:
    """Whoever listens to the bus and whoever to the socket; a partial answer takes nothing back."""
    source = SourceOptions(name="cloud", poll_interval_ns=NS_PER_S)
    core = WatcherCore(WatcherOptions(node_id="node-a", sources=(source,)))
    on_bus: set[str] = set()
    on_socket: set[str] = set()
    truth: set[str] = set()
    [command] = core.handle(WatcherStarted(cause_id="start"), now_ns=0)
    for number, poll in enumerate(polls, start=1):
        assert isinstance(command, PollSource)
        now_ns = number * NS_PER_S
        event: SourceObserved | SourceFailed
        if poll is None:
            event = SourceFailed(op_id=command.op_id, source="cloud", reason="", cause_id="poll")
        else:
            is_whole, graces = poll
            truth = set(graces) if is_whole else truth | set(graces)
            observation = Observation(
                is_whole=is_whole,
                readings=tuple(
                    Reading(
                        notice_id=notice_id,
                        kind=NoticeKind.PREEMPTION,
                        deadline_at_unix_ns=10**18 + now_ns + grace_s * NS_PER_S,
                    )
                    for notice_id, grace_s in graces.items()
                ),
            )
            event = SourceObserved(
                op_id=command.op_id,
                source="cloud",
                observation=observation,
                now_unix_ns=10**18 + now_ns,
                cause_id="poll",
            )
        for done in core.handle(event, now_ns=now_ns):
            if isinstance(done, PublishNotice):
                believe(on_bus, done.notice)
            elif isinstance(done, TellWorkers):
                for notice in done.notices:
                    believe(on_socket, notice)
            elif isinstance(done, SetTimer) and done.key == "poll/cloud":
                timer = TimerFired(key=done.key, cause_id="timer")
        core.check_invariants()
        assert on_bus == on_socket == truth
        [command] = core.handle(timer, now_ns=now_ns)


def believe(beliefs: set[str], notice: PreemptionNotice | NoticeWithdrawn) -> None:
    if isinstance(notice, NoticeWithdrawn):
        beliefs.discard(notice.notice_id)
    else:
        assert notice.grace_ns is not None
        assert notice.grace_ns >= 0
        beliefs.add(notice.notice_id)
