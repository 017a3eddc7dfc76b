import pytest

from libs.contracts.journal import SessionDispatched
from services.online_router.commands import AppendJournal, ReadJournalTail
from services.online_router.journal_writer import JournalWriter, WriterState


def a_record(number: int) -> SessionDispatched:
    return SessionDispatched(request_id=f"r{number}", session_epoch=1, worker_id="w1")


def a_writer(*, records: int = 1, batch_bytes_max: int = 10_000) -> JournalWriter:
    writer = JournalWriter(journal_id="router-a-1", batch_bytes_max=batch_bytes_max)
    for number in range(records):
        writer.add(a_record(number))
    return writer


def start(writer: JournalWriter) -> AppendJournal:
    command = writer.next_command(cause_id="test")
    assert command is not None
    writer.check_invariants()
    return command


def fail(writer: JournalWriter, command: AppendJournal) -> ReadJournalTail:
    reading = writer.append_failed(op_id=command.op_id, cause_id="test")
    assert reading is not None
    return reading


def test_records_that_come_during_an_append_go_into_one_batch_after_it() -> None:
    writer = a_writer()
    first = start(writer)
    writer.add(a_record(1))
    writer.add(a_record(2))
    assert writer.next_command(cause_id="test") is None
    committed = writer.appended(op_id=first.op_id, sequence=7)
    assert committed is not None
    assert committed.records == (a_record(0),)
    second = start(writer)
    assert second.records == (a_record(1), a_record(2))
    assert second.expected_sequence == 7


def test_a_batch_is_split_at_its_bound() -> None:
    writer = a_writer(records=5, batch_bytes_max=700)
    assert len(start(writer).records) == 2


def test_an_append_whose_answer_was_lost_is_committed_if_the_tail_is_ours() -> None:
    writer = a_writer()
    command = start(writer)
    reading = fail(writer, command)
    committed = writer.tail_read(op_id=reading.op_id, sequence=3, message_id=command.message_id)
    assert committed is not None
    assert committed.sequence == writer.sequence == 3
    assert writer.state is WriterState.IDLE


def test_an_append_that_never_arrived_is_repeated_under_the_same_message_id() -> None:
    writer = a_writer()
    command = start(writer)
    reading = fail(writer, command)
    assert writer.tail_read(op_id=reading.op_id, sequence=0, message_id=None) is None
    assert writer.state is WriterState.PAUSING
    again = writer.retry(cause_id="test")
    assert isinstance(again, AppendJournal)
    assert (again.message_id, again.records) == (command.message_id, command.records)
    assert again.op_id != command.op_id


def test_a_foreign_tail_fences_for_good() -> None:
    writer = a_writer()
    reading = fail(writer, start(writer))
    assert writer.tail_read(op_id=reading.op_id, sequence=9, message_id="router-b:fence:1") is None
    assert writer.state is WriterState.FENCED
    writer.add(a_record(5))
    assert writer.next_command(cause_id="test") is None
    assert writer.retry(cause_id="test") is None


def test_answers_to_an_older_operation_change_nothing() -> None:
    writer = a_writer()
    command = start(writer)
    fail(writer, command)
    assert writer.appended(op_id=command.op_id, sequence=3) is None
    assert writer.state is WriterState.VERIFYING


def test_an_unreadable_tail_is_read_again() -> None:
    writer = a_writer()
    reading = fail(writer, start(writer))
    writer.tail_unavailable(op_id=reading.op_id)
    assert isinstance(writer.retry(cause_id="test"), ReadJournalTail)


def test_the_journal_is_kept_from_the_oldest_session_on() -> None:
    writer = a_writer()
    for sequence in (1, 2, 3):
        writer.add(a_record(sequence))
        writer.appended(op_id=start(writer).op_id, sequence=sequence)
        writer.retain(f"r{sequence}", sequence=sequence)
    assert writer.purgeable_before() == 1
    assert writer.oldest_retained() == "r1"
    writer.release("r1")
    assert writer.purgeable_before() == 2
    assert writer.purgeable_before() is None
    writer.release("r3")
    assert writer.purgeable_before() is None
    writer.release("r2")
    assert writer.purgeable_before() == 3


def test_a_sequence_that_does_not_grow_is_our_own_bug() -> None:
    writer = a_writer()
    writer.appended(op_id=start(writer).op_id, sequence=3)
    writer.add(a_record(1))
    command = start(writer)
    with pytest.raises(AssertionError):
        writer.appended(op_id=command.op_id, sequence=3)
