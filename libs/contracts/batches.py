"""What a batch user, the gateway and the offline queue say to each other about offline work.

A batch is a file of requests that is answered by a deadline. Its bytes lie in the blob store; what
is known of files and batches lies in two buckets, one record each, replaced by compare-and-set:

    gateway      writes FileRecords (upload, delete), reads BatchRecords
    queue        writes BatchRecords and the FileRecords of its output

so that the gateway keeps no state and any of its replicas answers any question. What changes a
batch is asked of the queue, which owns it; an unanswered question is asked again.

One request without a file is a job: SubmitJob, published to a subject that a stream captures, so
that the broker's own answer to the publication is the promise.
"""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from libs.contracts.online import FailReason, FinishReason, RejectReason, SubmitRequest
from libs.contracts.wire import Codec, Message, RequestId, SubjectToken, Tenant, WireJson

BATCH_LINES_MAX = 50_000
BATCH_FILE_BYTES_MAX = 200 * 1000 * 1000
LINE_BYTES_MAX = 1_000_000
"""Of one line of a batch file; what a request may weigh on the bus, with room for its envelope."""
CUSTOM_ID_CHARACTERS_MAX = 512
METADATA_ENTRIES_MAX = 16
LINE_ERRORS_MAX = 100
"""Validation errors that a BatchRecord lists; the rest is counted."""
OFFLINE_PRIORITY = -10
"""Of an offline request with time to spare. Whatever is below 0 is offline: it yields."""
COMPLETION_WINDOW_S_DEFAULT = 86_400
STATUS_OK = 200
ENDPOINTS = ("/v1/chat/completions", "/v1/completions")
"""What the lines of a batch may ask."""

FileId = Annotated[str, StringConstraints(pattern=r"^file-[a-z0-9]{8,59}$")]
BatchId = Annotated[str, StringConstraints(pattern=r"^batch_[a-z0-9]{8,58}$")]
"""Ids sort by the time of creation."""
Metadata = Annotated[
    dict[
        Annotated[str, StringConstraints(max_length=64)],
        Annotated[str, StringConstraints(max_length=512)],
    ],
    Field(max_length=METADATA_ENTRIES_MAX),
]


class FilePurpose(StrEnum):
    """What a file is for."""

    BATCH = "batch"
    BATCH_OUTPUT = "batch_output"


class FileRecord(Message):
    """A file whose bytes are in the blob store under `file_id`; written after they are complete.

    Kept in FILE_BUCKET under `file_id`. Without a record there is no file: bytes that no record
    names are swept.
    """

    type: Literal["file_record.v1"] = "file_record.v1"
    file_id: FileId
    purpose: FilePurpose
    file_name: str = Field(max_length=255, description="as the user calls it; never a path")
    size_bytes: int = Field(ge=0)
    created_at_unix_s: int = Field(ge=0)
    expires_at_unix_s: int | None = Field(default=None, ge=0)
    tenant: Tenant = ""


class BatchStatus(StrEnum):
    """Where a batch is on its way; the last four are final."""

    VALIDATING = "validating"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    CANCELLING = "cancelling"
    FAILED = "failed"
    COMPLETED = "completed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """Whether nothing of the batch changes any more."""
        return self in _FINAL


_FINAL = frozenset(
    (BatchStatus.FAILED, BatchStatus.COMPLETED, BatchStatus.EXPIRED, BatchStatus.CANCELLED)
)


class LineError(Message):
    """Why a line cannot be asked, or why the whole file cannot."""

    code: str = Field(max_length=64)
    message: str = Field(max_length=1024)
    line: int | None = Field(default=None, ge=1, description="counted from 1; None: the whole file")
    parameter: str | None = Field(default=None, max_length=256)


class BatchCounts(Message):
    """Lines of a batch; each is counted as completed or failed at most once."""

    total: int = Field(default=0, ge=0)
    completed: int = Field(default=0, ge=0)
    failed: int = Field(default=0, ge=0)


class BatchRecord(Message):
    """All that is known of one batch, as users see it.

    Kept in BATCH_BUCKET under `batch_id`; written by the queue that works on it, by
    compare-and-set, and read by everybody. Instants are None until they come.
    """

    type: Literal["batch_record.v1"] = "batch_record.v1"
    batch_id: BatchId
    input_file_id: FileId
    endpoint: str = Field(max_length=64)
    alias: SubjectToken | None = Field(default=None, description="the model; None until validated")
    completion_window: str = Field(default="24h", max_length=16)
    status: BatchStatus = BatchStatus.VALIDATING
    counts: BatchCounts = BatchCounts()
    tokens_predicted: int = Field(
        default=0, ge=0, description="of all lines, prompt and answer, as validation guessed"
    )
    tokens_prompt: int = Field(default=0, ge=0, description="of the lines that ended")
    tokens_generated: int = Field(default=0, ge=0, description="likewise")
    output_file_id: FileId | None = None
    error_file_id: FileId | None = None
    errors: tuple[LineError, ...] = Field(default=(), max_length=LINE_ERRORS_MAX)
    metadata: Metadata = Field(default_factory=dict)
    tenant: Tenant = ""
    is_paused: bool = Field(default=False, description="takes up no further line")
    warning: str = Field(
        default="", max_length=1024, description="such as: the deadline is not likely to be met"
    )
    deadline_at_unix_s: int = Field(ge=0)
    output_expires_after_s: int | None = Field(default=None, ge=1)
    created_at_unix_s: int = Field(ge=0)
    in_progress_at_unix_s: int | None = Field(default=None, ge=0)
    finalizing_at_unix_s: int | None = Field(default=None, ge=0)
    completed_at_unix_s: int | None = Field(default=None, ge=0)
    failed_at_unix_s: int | None = Field(default=None, ge=0)
    expired_at_unix_s: int | None = Field(default=None, ge=0)
    cancelling_at_unix_s: int | None = Field(default=None, ge=0)
    cancelled_at_unix_s: int | None = Field(default=None, ge=0)


class SubmitBatch(Message):
    """Asks that every line of a file be answered.

    Sent by the gateway, or by whoever has put a file into the blob store, with a reply subject to
    BATCH_CONTROL; one queue of the group answers BatchAccepted or BatchRejected. Unanswered:
    ask again with the same batch_id, which never makes a second batch.
    """

    type: Literal["submit_batch.v1"] = "submit_batch.v1"
    batch_id: BatchId
    input_file_id: FileId
    endpoint: str = Field(max_length=64)
    completion_window: str = Field(default="24h", max_length=16)
    metadata: Metadata = Field(default_factory=dict)
    tenant: Tenant = ""
    output_expires_after_s: int | None = Field(default=None, ge=1)


class CancelBatch(Message):
    """Take up no further line, and end those that run; what is answered stays.

    Sent and answered as SubmitBatch. Of a batch that is cancelling already, or final, the answer is
    BatchRejected.
    """

    type: Literal["cancel_batch.v1"] = "cancel_batch.v1"
    batch_id: BatchId


class PauseBatch(Message):
    """Take up no further line until ResumeBatch; those that run end. The deadline stays.

    Sent and answered as SubmitBatch. Paused again, or final: answered with the record as it is.
    """

    type: Literal["pause_batch.v1"] = "pause_batch.v1"
    batch_id: BatchId


class ResumeBatch(Message):
    """Go on with a paused batch.

    Sent and answered as SubmitBatch. Not paused: answered with the record as it is.
    """

    type: Literal["resume_batch.v1"] = "resume_batch.v1"
    batch_id: BatchId


class BatchAccepted(Message):
    """Done, durably; this is the batch now.

    Sent by a queue to whoever asked.
    """

    type: Literal["batch_accepted.v1"] = "batch_accepted.v1"
    record: BatchRecord


class BatchRejectReason(StrEnum):
    """Why nothing was done."""

    MALFORMED = "malformed"
    INVALID = "invalid"
    BATCH_NOT_FOUND = "batch_not_found"
    FILE_NOT_FOUND = "file_not_found"
    CONFLICT = "conflict"
    FULL = "full"
    UNAVAILABLE = "unavailable"


class BatchRejected(Message):
    """Nothing was done.

    Sent by a queue to whoever asked. With `retry_after_ms` the same question may succeed later.
    """

    type: Literal["batch_rejected.v1"] = "batch_rejected.v1"
    reason: BatchRejectReason
    message: str
    parameter: str | None = None
    retry_after_ms: int | None = Field(default=None, ge=0)


class SubmitJob(Message):
    """Asks for one answer, some time before the deadline.

    Published by anybody to `offline(alias)`, which a stream captures: the broker's answer is the
    promise, a repeat with the same request_id within two minutes is one job. Handled by one queue.
    Its answer is one JobEnded in RESULT_STREAM.
    """

    type: Literal["submit_job.v1"] = "submit_job.v1"
    request: SubmitRequest
    tenant: Tenant = ""
    complete_within_s: int = Field(default=COMPLETION_WINDOW_S_DEFAULT, ge=1, le=30 * 86_400)
    submitted_at_unix_s: int | None = Field(
        default=None, ge=0, description="the window begins here; None: when the broker stored it"
    )
    metadata: dict[str, WireJson] = Field(default_factory=dict, max_length=METADATA_ENTRIES_MAX)


class JobEnded(Message):
    """How one job ended: the whole answer, or why there is none.

    Published by the queue to `offline_result(alias, request_id)` and kept in RESULT_STREAM for 40
    days, stored before the job is acknowledged. Doubled: the broker drops the second.
    """

    type: Literal["job_ended.v1"] = "job_ended.v1"
    request_id: RequestId
    text: str = ""
    token_ids: tuple[int, ...] = ()
    finish_reason: FinishReason | None = Field(default=None, description="None: it failed")
    fail_reason: FailReason | RejectReason | None = None
    message: str = Field(default="", description="why it failed")
    prompt_tokens: int = Field(default=0, ge=0)
    completion_tokens: int = Field(default=0, ge=0)
    deliveries: int = Field(default=1, ge=1, description="how often it was taken up")
    ended_at_unix_s: int = Field(ge=0)


class BatchTask(Message):
    """Look at this batch and do what its status asks for: validate it, or write its results.

    Published by a queue to `batch_task(batch_id)`, which JOB_STREAM captures; leased by one queue.
    Lost: whoever surveys the batches asks again. Doubled: the second look finds nothing to do.
    """

    type: Literal["batch_task.v1"] = "batch_task.v1"
    batch_id: BatchId


class BatchPart(Message):
    """Consecutive lines of a batch, to be answered by whoever leases this.

    Published by the queue that validated the batch to `batch_part(batch_id)`, which JOB_STREAM
    captures; acknowledged after the last of its lines is stored in RESULT_STREAM. Doubled: the
    lines that are stored already are left out.
    """

    type: Literal["batch_part.v1"] = "batch_part.v1"
    batch_id: BatchId
    part: int = Field(ge=0, description="parts of a batch count from 0, in the order of the file")
    first_line: int = Field(ge=1, description="counted from 1")
    first_byte: int = Field(ge=0)
    size_bytes: int = Field(ge=0)


class LineFailure(Message):
    """Why a line has no response at all."""

    code: str = Field(max_length=64)
    message: str = Field(max_length=1024)


class BatchLineEnded(Message):
    """How one line of a batch ended.

    Published by a queue to `batch_line(batch_id, part, outcome)` and kept in RESULT_STREAM until
    the files of the batch are written. Doubled: the broker drops the second within two minutes,
    whoever writes the files drops any other.
    """

    type: Literal["batch_line_ended.v1"] = "batch_line_ended.v1"
    batch_id: BatchId
    line: int = Field(ge=1)
    custom_id: str = Field(max_length=CUSTOM_ID_CHARACTERS_MAX)
    request_id: RequestId
    status_code: int | None = Field(default=None, description="None: there is no response")
    body_json: str = Field(default="", description="what POST would have answered, as JSON")
    body_blob: str = Field(
        default="", max_length=128, description="key of the blob with the body, if it is too long"
    )
    failure: LineFailure | None = Field(default=None, description="where there is no response")
    prompt_tokens: int = Field(default=0, ge=0)
    completion_tokens: int = Field(default=0, ge=0)

    @property
    def is_completed(self) -> bool:
        """Whether it was answered; a refusal, too, has a response."""
        return self.status_code == STATUS_OK


BatchQuestion = SubmitBatch | CancelBatch | PauseBatch | ResumeBatch
BatchAnswer = BatchAccepted | BatchRejected

BATCH_QUESTIONS: Codec[BatchQuestion] = Codec(Annotated[BatchQuestion, Field(discriminator="type")])
BATCH_ANSWERS: Codec[BatchAnswer] = Codec(Annotated[BatchAnswer, Field(discriminator="type")])
BATCH_RECORDS: Codec[BatchRecord] = Codec(BatchRecord)
BATCH_TASKS: Codec[BatchTask] = Codec(BatchTask)
BATCH_PARTS: Codec[BatchPart] = Codec(BatchPart)
BATCH_LINES: Codec[BatchLineEnded] = Codec(BatchLineEnded)
FILE_RECORDS: Codec[FileRecord] = Codec(FileRecord)
JOBS: Codec[SubmitJob] = Codec(SubmitJob)
JOB_RESULTS: Codec[JobEnded] = Codec(JobEnded)
