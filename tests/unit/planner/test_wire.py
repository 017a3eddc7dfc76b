"""What messages mean to a planner, and what its commands become."""

import pytest

from libs.contracts import subjects
from libs.contracts.placement import PLACEMENTS, CapacityWanted, PinShape, ShapePinned
from libs.contracts.preemption import NoticeKind, NoticeWithdrawn, PreemptionNotice
from libs.contracts.reports import GatewayReport, PlannerReport, RouterReport
from libs.contracts.wire import Encoding, encode
from libs.kernel.errors import ContractViolation
from services.planner.commands import AnswerPin, PublishCapacity
from services.planner.events import (
    NoticeReceived,
    PinRequested,
    PlannerEvent,
    PlannerReported,
    RouterReported,
    WithdrawalReceived,
)
from services.planner.wire import event_of, outgoing

NOTICE = PreemptionNotice(
    notice_id="n", node_id="a", kind=NoticeKind.PREEMPTION, source="aws", observed_at_unix_ns=1
)
WITHDRAWN = NoticeWithdrawn(notice_id="n", node_id="a", kind=NoticeKind.PREEMPTION, source="aws")
ROUTER = RouterReport(
    router_id="r", beat=0, journal_id="r-1", process_id=1, sessions_open=0, sessions_accepted=7
)
PLANNER = PlannerReport(planner_id="p", beat=3, process_id=1, alias="tide")
GATEWAY = GatewayReport(gateway_id="g", beat=0, process_id=1, http_url="", streams_open=0)


def heard(subject: str, payload: bytes) -> PlannerEvent | None:
    return event_of(subject=subject, payload=payload, reply_to="inbox", now_unix_ns=5)


def test_each_message_becomes_its_event() -> None:
    assert heard(subjects.notice("a"), encode(NOTICE)) == NoticeReceived(
        notice=NOTICE, cause_id="n"
    )
    assert heard(subjects.notice("a"), encode(WITHDRAWN)) == WithdrawalReceived(
        withdrawal=WITHDRAWN, cause_id="n"
    )
    assert heard(subjects.router_report("r"), encode(ROUTER)) == RouterReported(
        report=ROUTER, cause_id="r"
    )
    assert heard(subjects.planner_report("p"), encode(PLANNER)) == PlannerReported(
        report=PLANNER, received_at_unix_ns=5, cause_id="p"
    )


def test_what_is_nothing_to_a_planner_is_passed_over() -> None:
    assert heard(subjects.gateway_report("g"), encode(GATEWAY)) is None


@pytest.mark.parametrize(
    "subject",
    [subjects.notice("a"), subjects.worker_report("w"), subjects.planner_control("tide")],
)
@pytest.mark.parametrize("payload", [b"", b"\xff\xff", b"[1]", encode(GATEWAY)[:-3]])
def test_what_cannot_be_read_is_a_peers_fault(subject: str, payload: bytes) -> None:
    with pytest.raises(ContractViolation):
        heard(subject, payload)


def test_an_operator_is_answered_in_the_encoding_of_the_question() -> None:
    asked = heard(subjects.planner_control("tide"), encode(PinShape(), encoding=Encoding.JSON))
    assert isinstance(asked, PinRequested)
    answer = AnswerPin(
        reply_to=asked.reply_to,
        encoding=asked.encoding,
        answer=ShapePinned(plan_revision=4),
        cause_id="operator",
    )
    out = outgoing(answer, planner_id="p")
    assert out.subject == "inbox"
    assert out.payload.startswith(b"{")


def test_the_capacity_wanted_goes_to_the_subject_of_its_model() -> None:
    wanted = CapacityWanted(alias="tide", plan_revision=1, spot_nodes=2, on_demand_nodes=0)
    command = PublishCapacity(
        wanted=wanted, spot_node_ids=(), on_demand_node_ids=(), cause_id="test"
    )
    out = outgoing(command, planner_id="p")
    assert out.subject == subjects.capacity_wanted("tide")
    assert PLACEMENTS.decode(out.payload) == wanted
