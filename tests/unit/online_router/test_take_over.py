"""Routers that die, and routers that were believed dead and wake."""

from collections.abc import Callable, Sequence
from typing import Any

from libs.contracts.journal import (
    JournalClosed,
    JournalRecord,
    JournalTakenOver,
    SessionOpened,
)
from libs.contracts.online import (
    FinishReason,
    RequestFinished,
    SamplingParameters,
    TokensGenerated,
)
from libs.contracts.sessions import SessionSpec, StartSession
from libs.contracts.token_step import SessionTokens
from libs.contracts.wire import Encoding
from libs.kernel.units import NS_PER_S
from services.online_router.commands import (
    AppendJournal,
    ClaimRequest,
    ListJournals,
    PingRouter,
    PurgeJournal,
    ReadJournal,
    ReadJournalTail,
)
from services.online_router.events import (
    ClaimMade,
    JournalAppended,
    JournalAppendFailed,
    JournalRead,
    JournalsListed,
    JournalTailRead,
    PeerUnreachable,
)

ADesk = Callable[..., Any]
DEAD = "router-z-1"


def an_opening(request_id: str = "r9", **changes: Any) -> SessionOpened:
    fields: dict[str, Any] = {
        "spec": SessionSpec(
            request_id=request_id,
            alias="tiny",
            prompt_token_ids=(1, 2, 3),
            max_tokens=8,
            sampling=SamplingParameters(temperature=0.0, seed=1),
        ),
        "reply_to": f"inbox.{request_id}",
        "encoding": Encoding.MSGPACK,
        "session_epoch": 3,
        "worker_id": "w1",
        "expires_at_unix_ns": None,
        **changes,
    }
    return SessionOpened(**fields)


def some_tokens(count: int, *, finish_reason: FinishReason | None = None) -> SessionTokens:
    return SessionTokens(
        request_id="r9",
        session_epoch=3,
        first_index=0,
        token_ids=tuple(range(count)),
        texts=("x",) * count,
        finish_reason=finish_reason,
    )


def find_silent(desk: Any, *journal_ids: str) -> None:
    """List dead journals and stay alone for as long as it takes to believe them dead."""
    desk.sweep(NS_PER_S)
    op_id = desk.only(ListJournals).op_id
    counts = dict.fromkeys(journal_ids or (DEAD,), 4)
    desk.tell(JournalsListed(op_id=op_id, messages_by_journal_id=counts, cause_id="t"))
    for _ in range(10):
        desk.worker_reports("w1")
        desk.echo()
    desk.sweep()


def read(desk: Any, records: Sequence[JournalRecord], *, sequence: int = 44) -> None:
    op_id = desk.only(ReadJournal).op_id
    desk.tell(
        JournalRead(
            op_id=op_id,
            records=tuple(records),
            sequence=sequence,
            read_at_unix_ns=10**18,
            cause_id="t",
        )
    )


def append_to(desk: Any, journal_id: str) -> AppendJournal:
    (append,) = [c for c in desk.all(AppendJournal) if c.journal_id == journal_id]
    return append


def a_fencing_desk(a_desk: ADesk, records: Sequence[JournalRecord]) -> Any:
    desk = a_desk("w1")
    find_silent(desk)
    read(desk, records)
    return desk


def test_a_silent_journal_is_read_then_fenced_with_the_sequence_that_was_read(
    a_desk: ADesk,
) -> None:
    desk = a_fencing_desk(a_desk, [an_opening(), some_tokens(2)])
    fence = append_to(desk, DEAD)
    assert fence.expected_sequence == 44
    assert fence.records == (JournalTakenOver(by_router_id="router-a", by_journal_id="router-a-1"),)
    assert not desk.core.state.sessions, "nothing is adopted before the fence stands"


def test_the_journal_of_a_router_that_is_heard_is_left_alone(a_desk: ADesk) -> None:
    desk = a_desk("w1")
    desk.sweep(NS_PER_S)
    op_id = desk.only(ListJournals).op_id
    desk.tell(JournalsListed(op_id=op_id, messages_by_journal_id={DEAD: 4}, cause_id="t"))
    desk.echo(9)
    desk.sweep()
    assert not desk.all(ReadJournal)


def test_a_router_nobody_listens_for_is_dead_after_two_reports(a_desk: ADesk) -> None:
    desk = a_desk("w1")
    desk.hear_router("router-z")
    desk.sweep(NS_PER_S)
    op_id = desk.only(ListJournals).op_id
    desk.tell(JournalsListed(op_id=op_id, messages_by_journal_id={DEAD: 4}, cause_id="t"))
    desk.echo(2)
    assert desk.only(PingRouter).router_id == "router-z"
    desk.tell(PeerUnreachable(peer_id="router-z", cause_id="t"))
    desk.echo()
    desk.sweep()
    assert desk.only(ReadJournal).journal_id == DEAD


def test_a_fence_that_fails_adopts_nothing(a_desk: ADesk) -> None:
    desk = a_fencing_desk(a_desk, [an_opening(), some_tokens(2)])
    desk.tell(JournalAppendFailed(op_id=append_to(desk, DEAD).op_id, cause_id="t"))
    assert not desk.core.state.sessions
    assert not desk.all(ClaimRequest)


def test_an_adopted_session_goes_on_at_its_worker_from_its_last_token(a_desk: ADesk) -> None:
    desk = a_fencing_desk(a_desk, [an_opening(), some_tokens(2)])
    fence = append_to(desk, DEAD)
    desk.tell(JournalAppended(op_id=fence.op_id, sequence=45, cause_id="t"))
    claim = desk.only(ClaimRequest)
    assert claim.is_forced
    own = append_to(desk, "router-a-1")
    (opened,) = own.records
    assert isinstance(opened, SessionOpened)
    assert opened.session_epoch == 4
    assert opened.generated_token_ids == (0, 1)
    desk.tell(JournalAppended(op_id=own.op_id, sequence=46, cause_id="t"))
    (start,) = [m for m in desk.sent_to("w1") if isinstance(m, StartSession)]
    assert (start.session_epoch, start.generated_token_ids) == (4, (0, 1))
    (relayed,) = desk.replies()
    assert isinstance(relayed, TokensGenerated)
    assert relayed.token_ids == (0, 1)
    assert not desk.all(AppendJournal), "not closed while a claim is open"
    desk.tell(ClaimMade(op_id=claim.op_id, cause_id="t"))
    close = append_to(desk, DEAD)
    assert close.records == (JournalClosed(by_journal_id="router-a-1"),)
    assert close.expected_sequence == 45
    desk.tell(JournalAppended(op_id=close.op_id, sequence=47, cause_id="t"))
    assert desk.only(PurgeJournal).before_sequence == 47


def test_the_end_of_an_adopted_session_that_was_over_is_told_again(a_desk: ADesk) -> None:
    over = some_tokens(2, finish_reason=FinishReason.STOP)
    desk = a_fencing_desk(a_desk, [an_opening(), over])
    desk.tell(JournalAppended(op_id=append_to(desk, DEAD).op_id, sequence=45, cause_id="t"))
    own = append_to(desk, "router-a-1")
    desk.tell(JournalAppended(op_id=own.op_id, sequence=46, cause_id="t"))
    tokens, end = desk.replies()
    assert tokens.token_ids == (0, 1)
    assert isinstance(end, RequestFinished)
    assert not [m for m in desk.sent_to("w1") if isinstance(m, StartSession)]


def test_a_journal_whose_taker_lives_is_left_to_it(a_desk: ADesk) -> None:
    taken = JournalTakenOver(by_router_id="router-y", by_journal_id="router-y-1")
    desk = a_desk("w1")
    find_silent(desk, DEAD, "router-y-1")
    # Both fell silent; router-y's journal comes first in the list and is read first.
    first = desk.only(ReadJournal)
    assert first.journal_id == "router-y-1"
    desk.tell(
        JournalRead(op_id=first.op_id, records=(), sequence=0, read_at_unix_ns=10**18, cause_id="t")
    )
    desk.sweep()
    read(desk, [an_opening(), taken])
    assert append_to(desk, DEAD).records[0] == JournalTakenOver(
        by_router_id="router-a", by_journal_id="router-a-1"
    )


def test_a_journal_whose_taker_died_half_way_waits_for_the_takers_own(a_desk: ADesk) -> None:
    taken = JournalTakenOver(by_router_id="router-zz", by_journal_id="router-zz-1")
    desk = a_desk("w1")
    find_silent(desk, DEAD, "router-zz-1")
    assert desk.only(ReadJournal).journal_id == DEAD
    read(desk, [an_opening(), taken])
    assert not desk.all(AppendJournal)
    desk.sweep()
    assert desk.only(ReadJournal).journal_id == "router-zz-1"


# The other side: being taken over.


def a_fenced_desk(a_desk: ADesk) -> Any:
    desk = a_desk("w1")
    desk.accept()
    desk.tokens(0)
    append = desk.only(AppendJournal)
    desk.tell(JournalAppendFailed(op_id=append.op_id, cause_id="t"))
    tail = desk.only(ReadJournalTail)
    taken = JournalTakenOver(by_router_id="router-b", by_journal_id="router-b-1")
    desk.tell(
        JournalTailRead(
            op_id=tail.op_id,
            sequence=99,
            message_id="router-b:fence:1",
            records=(taken,),
            cause_id="t",
        )
    )
    return desk


def test_a_router_that_was_taken_over_says_nothing_more(a_desk: ADesk) -> None:
    desk = a_fenced_desk(a_desk)
    assert not desk.replies()
    assert not desk.core.state.sessions
    desk.tokens(1)
    assert not desk.replies()
    assert not desk.all(AppendJournal)


def test_it_starts_a_journal_of_its_own_anew(a_desk: ADesk) -> None:
    desk = a_fenced_desk(a_desk)
    assert desk.core.state.writer.journal_id == "router-a-2"
    desk.sequence = 200
    desk.accept("r2")
    assert desk.replies()
    assert desk.core.state.counters.times_fenced == 1


def test_an_append_that_was_stored_after_all_goes_on_as_if_answered(a_desk: ADesk) -> None:
    desk = a_desk("w1")
    desk.accept()
    desk.tokens(0)
    append = desk.only(AppendJournal)
    desk.tell(JournalAppendFailed(op_id=append.op_id, cause_id="t"))
    tail = desk.only(ReadJournalTail)
    desk.tell(
        JournalTailRead(
            op_id=tail.op_id,
            sequence=2,
            message_id=append.message_id,
            records=append.records,
            cause_id="t",
        )
    )
    (message,) = desk.replies()
    assert isinstance(message, TokensGenerated)
