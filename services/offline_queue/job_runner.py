"""Has the fleet answer one job, and stores how it ended; see `line_runner`."""

from dataclasses import dataclass

from libs.client.errors import RequestFailedError, RequestRefused
from libs.contracts.batches import JobEnded, SubmitJob
from libs.contracts.online import FailReason, RejectReason
from libs.kernel.errors import Unavailable
from libs.runtime.bus import PayloadTooLarge
from services.offline_queue.asking import (
    Asking,
    expires_after_ms,
    failed,
    put_off,
    refused,
    stored_at_last,
)
from services.offline_queue.commands import FailLine, StartLine
from services.offline_queue.events import LinePutOff, LineStored
from services.offline_queue.store import OfflineStore


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedJob:
    """A job, and how often it was taken up."""

    alias: str
    job: SubmitJob
    deliveries: int


class JobRunner:
    """Runs jobs."""

    def __init__(self, asking: Asking, store: OfflineStore) -> None:
        self._asking = asking
        self._store = store

    async def run(self, loaded: LoadedJob, command: StartLine) -> LineStored | LinePutOff:
        """Answer a job."""
        request = loaded.job.request
        attempt = f"-{command.attempt}" if command.attempt else ""
        request_id = f"{request.request_id[: 64 - len(attempt)]}{attempt}"
        submission = request.model_copy(
            update={
                "request_id": request_id,
                "tenant": loaded.job.tenant or request.tenant,
                "priority": command.priority,
                "expires_after_ms": expires_after_ms(command),
            }
        )
        try:
            tokens, stream = await self._asking.tokens(loaded.alias, submission)
        except RequestRefused as refusal:
            later = refused(command, refusal)
            if later is not None:
                return later
            ended = self._failed(loaded, refusal.reason, str(refusal))
            return await self._stored(loaded, command, ended)
        except RequestFailedError as failure:
            return failed(command, failure)
        except Unavailable:
            return put_off(command)
        ended = JobEnded(
            request_id=request.request_id,
            text="".join(token.text for token in tokens),
            token_ids=tuple(token.token_id for token in tokens),
            finish_reason=stream.finish_reason,
            prompt_tokens=stream.prompt_tokens or 0,
            completion_tokens=len(tokens),
            deliveries=loaded.deliveries,
            ended_at_unix_s=self._store.now_unix_s(),
        )
        outcome = await self._stored(loaded, command, ended)
        if isinstance(outcome, LineStored):
            await self._asking.forget([submission])
        return outcome

    async def fail(self, loaded: LoadedJob, command: FailLine) -> LineStored | LinePutOff:
        """Store that a job ends without an answer."""
        is_expired = command.code == FailReason.EXPIRED
        reason = FailReason.EXPIRED if is_expired else FailReason.ENGINE_ERROR
        ended = self._failed(loaded, reason, command.message)
        return await self._stored(loaded, command, ended)

    def _failed(
        self, loaded: LoadedJob, reason: FailReason | RejectReason, message: str
    ) -> JobEnded:
        return JobEnded(
            request_id=loaded.job.request.request_id,
            fail_reason=reason,
            message=message,
            deliveries=loaded.deliveries,
            ended_at_unix_s=self._store.now_unix_s(),
        )

    async def _stored(
        self, loaded: LoadedJob, command: StartLine | FailLine, ended: JobEnded
    ) -> LineStored | LinePutOff:
        try:
            is_stored = await stored_at_last(lambda: self._store.store_job(loaded.alias, ended))
        except PayloadTooLarge as error:
            ended = self._failed(loaded, RejectReason.TOO_LARGE, f"the answer: {error}")
            is_stored = await stored_at_last(lambda: self._store.store_job(loaded.alias, ended))
        if not is_stored:
            return put_off(command)
        return LineStored(
            part_key=command.part_key,
            line=command.line,
            is_completed=ended.finish_reason is not None,
            prompt_tokens=ended.prompt_tokens,
            answer_tokens=ended.completion_tokens,
            cause_id=command.cause_id,
        )
