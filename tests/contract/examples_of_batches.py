"""Examples of what offline work is asked with: one of every message, as it was at its release."""

from libs.contracts.batches import (
    BatchAccepted,
    BatchCounts,
    BatchRecord,
    BatchRejected,
    BatchRejectReason,
    BatchStatus,
    CancelBatch,
    FilePurpose,
    FileRecord,
    JobEnded,
    LineError,
    PauseBatch,
    ResumeBatch,
    SubmitBatch,
    SubmitJob,
)
from libs.contracts.online import FinishReason, SubmitRequest
from libs.contracts.wire import Message

BATCH_ID = "batch_0t8k2m4pq7r9"
RECORD = BatchRecord(
    batch_id=BATCH_ID,
    input_file_id="file-0t8k2m4pq7r8",
    endpoint="/v1/chat/completions",
    alias="tide-tiny",
    status=BatchStatus.IN_PROGRESS,
    counts=BatchCounts(total=100, completed=40, failed=1),
    tokens_prompt=4000,
    tokens_generated=2000,
    errors=(LineError(code="invalid_json", message="not an object", line=7, parameter="body"),),
    metadata={"run": "nightly"},
    tenant="team-a",
    deadline_at_unix_s=1_800_086_400,
    created_at_unix_s=1_800_000_000,
    in_progress_at_unix_s=1_800_000_010,
)
BATCHES: tuple[Message, ...] = (
    FileRecord(
        file_id="file-0t8k2m4pq7r8",
        purpose=FilePurpose.BATCH,
        file_name="questions ≈ 1.jsonl",
        size_bytes=123_456,
        created_at_unix_s=1_800_000_000,
        expires_at_unix_s=1_802_592_000,
        tenant="team-a",
    ),
    RECORD,
    SubmitBatch(
        batch_id=BATCH_ID,
        input_file_id="file-0t8k2m4pq7r8",
        endpoint="/v1/chat/completions",
        metadata={"run": "nightly"},
        tenant="team-a",
        output_expires_after_s=3600,
    ),
    CancelBatch(batch_id=BATCH_ID),
    PauseBatch(batch_id=BATCH_ID),
    ResumeBatch(batch_id=BATCH_ID),
    BatchAccepted(record=RECORD),
    BatchRejected(
        reason=BatchRejectReason.CONFLICT,
        message="the batch is completed",
        parameter="batch_id",
    ),
    SubmitJob(
        request=SubmitRequest(request_id="job-1", prompt="The tide", max_tokens=8),
        tenant="team-a",
        complete_within_s=600,
        submitted_at_unix_s=1_800_000_000,
        metadata={"document": 12},
    ),
    JobEnded(
        request_id="job-1",
        text="turns ≈",
        token_ids=(17, 4),
        finish_reason=FinishReason.LENGTH,
        prompt_tokens=3,
        completion_tokens=2,
        deliveries=2,
        ended_at_unix_s=1_800_000_100,
    ),
)
