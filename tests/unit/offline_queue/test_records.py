"""How a batch's record changes, and what it never does."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.contracts.batches import BatchCounts, BatchStatus, FileRecord, LineError, SubmitBatch
from libs.runtime.blob_store import BlobFacts
from services.offline_queue.janitor import ended, orphans, past_their_time
from services.offline_queue.records import (
    TRANSITIONS,
    CancelAsked,
    Change,
    Counted,
    Finalized,
    FinalizingBegun,
    Invalid,
    PauseAsked,
    Validated,
    changed,
    is_same_question,
    new_record,
    result_file_id,
    window_s,
)
from tests.unit.offline_queue.conftest import UNIX_S, a_record

NOW_S = UNIX_S + 50
OUTPUT = "file-000000000001"


def finalized(*, completed: int = 100, failed: int = 0, total: int = 100) -> Finalized:
    return Finalized(
        counts=BatchCounts(total=total, completed=completed, failed=failed),
        tokens_prompt=5,
        tokens_generated=7,
        output_file_id=OUTPUT,
        error_file_id=None,
    )


CHANGES: list[Change] = [
    Validated(alias="tiny", lines=3, tokens_predicted=30),
    Invalid(errors=(LineError(code="c", message="m"),)),
    CancelAsked(),
    PauseAsked(is_paused=True),
    Counted(completed=1, failed=1, warning=""),
    FinalizingBegun(),
    finalized(),
]


def test_every_status_says_what_may_follow() -> None:
    assert set(TRANSITIONS) == set(BatchStatus)
    for status, following in TRANSITIONS.items():
        assert status.is_final == (not following)


@given(st.lists(st.sampled_from(CHANGES), max_size=20))
def test_whatever_happens_a_final_record_never_changes(changes: list[Change]) -> None:
    record = a_record(status=BatchStatus.VALIDATING, alias=None, counts=BatchCounts())
    final = None
    for change in changes:
        record = changed(record, change, now_unix_s=NOW_S)
        assert final is None or record == final
        final = record if record.status.is_final else None
        assert record.counts.completed + record.counts.failed <= max(record.counts.total, 100)


@pytest.mark.parametrize(
    ("text", "length_s"),
    [("24h", 86_400), ("90m", 5_400), ("45s", 45), ("7d", 604_800), ("1s", 1)],
)
def test_a_window_is_a_number_and_a_unit(text: str, length_s: int) -> None:
    assert window_s(text) == length_s


@pytest.mark.parametrize(
    "text", ["", "24", "h", "0h", "-1h", "1.5h", "24H", "31d", "9999999h", "٣h"]
)
def test_anything_else_is_no_window(text: str) -> None:
    assert window_s(text) is None


def test_a_batch_goes_its_way_with_an_instant_for_each_step() -> None:
    record = a_record(status=BatchStatus.VALIDATING, alias=None, counts=BatchCounts())
    steps = [CHANGES[0], FinalizingBegun(), finalized(completed=3, total=3)]
    for change in steps:
        record = changed(record, change, now_unix_s=NOW_S)
    assert record.status is BatchStatus.COMPLETED
    assert (record.alias, record.counts.completed, record.tokens_generated) == ("tiny", 3, 7)
    assert record.in_progress_at_unix_s == record.finalizing_at_unix_s == NOW_S
    assert record.completed_at_unix_s == NOW_S
    assert record.expired_at_unix_s is None


def test_a_batch_with_lines_missing_at_the_end_has_expired() -> None:
    record = changed(a_record(), FinalizingBegun(), now_unix_s=NOW_S)
    record = changed(record, finalized(completed=90, failed=9), now_unix_s=NOW_S)
    assert record.status is BatchStatus.EXPIRED
    assert (record.expired_at_unix_s, record.completed_at_unix_s) == (NOW_S, None)


def test_a_cancelled_batch_stays_cancelled_however_much_of_it_is_done() -> None:
    record = a_record()
    for change in (CancelAsked(), FinalizingBegun(), finalized()):
        record = changed(record, change, now_unix_s=NOW_S)
    assert record.status is BatchStatus.CANCELLED
    assert record.cancelling_at_unix_s == record.cancelled_at_unix_s == NOW_S


def test_counts_only_grow_and_never_beyond_the_lines_there_are() -> None:
    record = a_record(counts=BatchCounts(total=10, completed=5, failed=1))
    fewer = changed(record, Counted(completed=3, failed=0, warning=""), now_unix_s=NOW_S)
    assert fewer == record
    more = changed(record, Counted(completed=9, failed=4, warning=""), now_unix_s=NOW_S)
    assert (more.counts.completed, more.counts.failed) == (9, 1)


def test_finalizing_again_keeps_the_instant_and_so_the_files() -> None:
    once = changed(a_record(status=BatchStatus.CANCELLING), FinalizingBegun(), now_unix_s=NOW_S)
    again = changed(once, FinalizingBegun(), now_unix_s=NOW_S + 99)
    assert again == once
    assert result_file_id(once, "output") == result_file_id(again, "output")
    assert result_file_id(once, "output") != result_file_id(once, "error")
    assert a_file(result_file_id(once, "output")), "it is a file's id"


def test_a_repeated_question_is_known_by_what_it_asks() -> None:
    question = SubmitBatch(
        batch_id="batch_00000001", input_file_id="file-00000001", endpoint="/v1/completions"
    )
    record = new_record(question, window=60, now_unix_s=NOW_S)
    assert record.deadline_at_unix_s == NOW_S + 60
    assert is_same_question(record, question)
    assert not is_same_question(record, question.model_copy(update={"metadata": {"a": "b"}}))


# What is swept.


def a_blob(key: str, *, age_s: int = 7200) -> BlobFacts:
    return BlobFacts(key=key, size_bytes=1, written_at_unix_s=NOW_S - age_s)


def a_file(file_id: str, *, expires_at_unix_s: int | None = None) -> FileRecord:
    return FileRecord(
        file_id=file_id,
        purpose="batch",  # type: ignore[arg-type]
        file_name="f",
        size_bytes=1,
        created_at_unix_s=0,
        expires_at_unix_s=expires_at_unix_s,
    )


def test_old_bytes_without_a_record_are_swept_and_nothing_else() -> None:
    open_one, final_one = a_record("batch_0000000a"), a_record("batch_0000000b")
    final_one = final_one.model_copy(update={"status": BatchStatus.COMPLETED})
    blobs = [
        a_blob("file-0000known"),
        a_blob("file-00000young", age_s=60),
        a_blob("file-00000001"),
        a_blob("file-00000lost"),
        a_blob("line-0000000a-7"),
        a_blob("line-0000000b-7"),
    ]
    found = orphans(
        blobs,
        files={"file-0000known": a_file("file-0000known")},
        batches={r.batch_id: r for r in (open_one, final_one)},
        now_unix_s=NOW_S,
    )
    assert found == ["file-00000lost", "line-0000000b-7"]


def test_files_past_their_time_are_swept_unless_a_batch_still_reads_them() -> None:
    files = {
        file_id: a_file(file_id, expires_at_unix_s=expires)
        for file_id, expires in [
            ("file-00000001", NOW_S),
            ("file-00000002", NOW_S),
            ("file-00000003", NOW_S + 1),
            ("file-00000004", None),
        ]
    }
    record = a_record()
    swept = past_their_time(files, batches={record.batch_id: record}, now_unix_s=NOW_S)
    assert swept == ["file-00000002"]


def test_work_of_batches_that_are_over_or_unknown_is_swept() -> None:
    record = a_record()
    over = a_record("batch_0000000b", status=BatchStatus.FAILED)
    known = {r.batch_id: r for r in (record, over)}
    held = [record.batch_id, over.batch_id, "batch_0000000c"]
    assert ended(held, known) == ["batch_0000000b", "batch_0000000c"]
