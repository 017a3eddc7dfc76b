"""The worker's messages as bytes, both ways."""

from collections.abc import Callable
from typing import Any

import pytest

from libs.contracts import subjects
from libs.contracts.reports import REPORTS
from libs.contracts.sessions import ROUTER_CONTROL, AcknowledgeTokens, EndSession
from libs.contracts.token_step import unpack_step
from libs.contracts.wire import Encoding, encode
from libs.kernel.errors import ContractViolation
from services.gpu_worker.commands import PublishReport, SendTokens, SendToRouter
from services.gpu_worker.events import AcknowledgeReceived, EndReceived, StartReceived
from services.gpu_worker.wire import event_of, outgoing


@pytest.mark.parametrize("encoding", list(Encoding))
def test_every_message_to_a_worker_becomes_its_event(
    a_start: Callable[..., Any], encoding: Encoding
) -> None:
    start = a_start("r", epoch=2)
    acknowledge = AcknowledgeTokens(router_id="router-a", receipts=())
    end = EndSession(request_id="r", session_epoch=2)
    events = [event_of(encode(m, encoding=encoding)) for m in (start, acknowledge, end)]
    assert events == [
        StartReceived(message=start, cause_id="r#2"),
        AcknowledgeReceived(message=acknowledge, cause_id="router-a"),
        EndReceived(message=end, cause_id="r#2"),
    ]


@pytest.mark.parametrize("payload", [b"", b"\xc1", b"{}", b'{"type":"token_step.v1"}'])
def test_what_is_no_message_to_a_worker_is_a_contract_violation(payload: bytes) -> None:
    with pytest.raises(ContractViolation):
        event_of(payload)


def test_every_sending_goes_to_its_subject_and_can_be_read_there(
    a_worker: Callable[..., Any],
) -> None:
    worker = a_worker()
    worker.start()
    worker.finish_step()
    by_kind = {type(command): command for command in worker.sent}
    tokens = outgoing(by_kind[SendTokens])
    answer = outgoing(by_kind[SendToRouter])
    report = outgoing(by_kind[PublishReport])
    assert tokens.subject == subjects.router_tokens("router-a")
    assert unpack_step(tokens.payload) == by_kind[SendTokens].step
    assert answer.subject == subjects.router_control("router-a")
    assert ROUTER_CONTROL.decode(answer.payload) == by_kind[SendToRouter].message
    assert report.subject == subjects.worker_report("worker-a")
    assert REPORTS.decode(report.payload) == by_kind[PublishReport].report
