"""A router without a model: answers requests on a bus from a script, as well or badly as told.

For testing programs that publish requests, without weights, workers or a GPU. It keeps the whole
contract of an online router towards clients, repeated submissions included; a script may make it
reject, stall or fail, and a LossyLink may lose, double and reorder what it sends.
"""

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

from libs.contracts import subjects
from libs.contracts.online import (
    CANCELLATIONS,
    SUBMISSIONS,
    FailReason,
    FinishReason,
    RejectReason,
    RequestAccepted,
    RequestFailed,
    RequestFinished,
    RequestRejected,
    ScoredToken,
    SubmitRequest,
    TokenLogprobs,
    TokensGenerated,
)
from libs.contracts.online import ToClient as Answer
from libs.contracts.reports import RouterReport, WorkerReport
from libs.contracts.text import (
    TEXT_QUESTIONS,
    DetokenizeIds,
    IdsDetokenized,
    TextRejected,
    TextTokenized,
    TokenizeText,
)
from libs.contracts.wire import Encoding, encode, encoding_of
from libs.kernel.errors import ContractViolation, Unavailable
from libs.kernel.rng import Rng
from libs.kernel.units import NS_PER_MS, seconds
from libs.runtime.bus import Bus, BusMessage, Subscription

VOCABULARY_SIZE: Final = 32_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """How one request goes. Without more, the texts are sent at once and the answer ends well."""

    texts: Sequence[str] = ("The", " tide", " comes", " in", ".")
    """One per token; token ids count up from 100."""
    finish_reason: FinishReason = FinishReason.STOP
    prompt_tokens: int = 7
    pace_ns: int = 0
    """Pause before each token."""
    rejection: RejectReason | None = None
    """Refuse the first `rejections` submissions for this reason."""
    rejections: int = 1_000_000
    retry_after_ms: int | None = None
    """Goes with the rejection."""
    failure: FailReason | None = None
    """Fail, instead of finishing, after the last token."""
    stalls_after: int | None = None
    """Send this many tokens, then nothing more, ever."""
    submissions_ignored: int = 0
    """Stay silent to the first submissions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LossyLink:
    """Probabilities, drawn from a seed, with which one answer message meets a mishap."""

    lost: float = 0.0
    doubled: float = 0.0
    overtaken: float = 0.0
    """Sent only after the next message."""
    seed: int = 0


@dataclass(slots=True, kw_only=True)
class _Session:
    submission: SubmitRequest
    reply_to: str
    encoding: Encoding
    script: Script
    submissions: int = 0
    tokens_generated: int = 0
    end: RequestFinished | RequestFailed | None = None
    running: asyncio.Task[None] | None = None
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)


class ScriptedRouter:
    """Serves one alias on a bus; see the head of this file. Use `serving`."""

    def __init__(
        self,
        bus: Bus,
        *,
        alias: str = "tide-tiny",
        script_of: Callable[[SubmitRequest], Script] = lambda submission: Script(),
        link: LossyLink | None = None,
        report_interval_ns: int = 100 * NS_PER_MS,
    ) -> None:
        self.submissions: list[SubmitRequest] = []
        """Every submission that could be read, repeats included."""
        self._bus = bus
        self._alias = alias
        self._script_of = script_of
        self._link = link or LossyLink()
        self._rng = Rng(self._link.seed).child("link")
        self._overtaken: tuple[str, bytes] | None = None
        self._report_interval_ns = report_interval_ns
        self._sessions: dict[str, _Session] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def serving(self) -> AsyncIterator["ScriptedRouter"]:
        """Listen, answer and report as router and worker until the block is left."""
        submissions = await self._bus.subscribe(
            subjects.online(self._alias), queue_group=subjects.ROUTER_QUEUE_GROUP
        )
        cancellations = await self._bus.subscribe(subjects.CANCEL_ALL)
        questions = await self._bus.subscribe(subjects.text(self._alias))
        self._start(self._read(submissions, self._submitted))
        self._start(self._read(cancellations, self._cancelled))
        self._start(self._read(questions, self._asked))
        self._start(self._report())
        try:
            yield self
        finally:
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await submissions.close()
            await cancellations.close()
            await questions.close()

    async def cancelled(self, request_id: str) -> None:
        """Return once this request has been cancelled; it must have been submitted."""
        await self._sessions[request_id].cancelled.wait()

    async def _read(
        self,
        messages: Subscription,
        take: Callable[[BusMessage], Coroutine[object, None, None]],
    ) -> None:
        async for message in messages:
            await take(message)

    async def _submitted(self, message: BusMessage) -> None:
        if message.reply_to is None:
            return
        try:
            submission = SUBMISSIONS.decode(message.payload)
        except ContractViolation as error:
            rejection = RequestRejected(reason=RejectReason.MALFORMED, message=str(error))
            payload = encode(rejection, encoding=encoding_of(message.payload))
            await self._bus.publish(message.reply_to, payload)
            return
        self.submissions.append(submission)
        session = self._sessions.get(submission.request_id)
        if session is None:
            session = _Session(
                submission=submission,
                reply_to=message.reply_to,
                encoding=encoding_of(message.payload),
                script=self._script_of(submission),
            )
            self._sessions[submission.request_id] = session
        session.reply_to = message.reply_to  # a repeat may come from another client
        session.submissions += 1
        await self._answer(session, submission.tokens_received)

    async def _answer(self, session: _Session, tokens_received: int) -> None:
        script = session.script
        if session.submissions <= script.submissions_ignored:
            return
        if script.rejection is not None and session.submissions <= script.rejections:
            await self._send(session, _rejection(session, script.rejection))
            return
        await self._send(session, _accepted(session))
        if session.running is None:
            session.running = self._start(self._generate(session))
            return
        if tokens_received < session.tokens_generated:
            await self._send(session, _tokens(session, tokens_received, session.tokens_generated))
        if session.end is not None:
            await self._send(session, session.end)

    async def _generate(self, session: _Session) -> None:
        script = session.script
        for index in range(len(script.texts)):
            if index == script.stalls_after:
                return
            if script.pace_ns:
                await asyncio.sleep(seconds(script.pace_ns))
            session.tokens_generated = index + 1
            await self._send(session, _tokens(session, index, index + 1))
        session.end = _end(session)
        await self._send(session, session.end)

    async def _cancelled(self, message: BusMessage) -> None:
        session = self._sessions.get(CANCELLATIONS.decode(message.payload).request_id)
        if session is None:
            return
        if session.running is not None:
            session.running.cancel()
        session.cancelled.set()

    async def _asked(self, message: BusMessage) -> None:
        """Answer a question about text: a token is a character, its id the code point."""
        assert message.reply_to is not None
        question = TEXT_QUESTIONS.decode(message.payload)
        answer: TextTokenized | IdsDetokenized | TextRejected
        match question:
            case TokenizeText():
                said = [question.prompt or "", *(m.content for m in question.messages or ())]
                token_ids = tuple(ord(character) for character in "".join(said))
                texts = tuple(map(chr, token_ids)) if question.with_token_texts else ()
                answer = TextTokenized(token_ids=token_ids, token_texts=texts)
            case DetokenizeIds():
                answer = _text_of(question)
        await self._publish(message.reply_to, encode(answer))

    async def _send(self, session: _Session, answer: Answer) -> None:
        payload = encode(answer, encoding=session.encoding)
        overtaken, self._overtaken = self._overtaken, None
        if self._rng.random() < self._link.overtaken:
            self._overtaken = (session.reply_to, payload)
        elif self._rng.random() >= self._link.lost:
            await self._publish(session.reply_to, payload)
            if self._rng.random() < self._link.doubled:
                await self._publish(session.reply_to, payload)
        if overtaken is not None:
            await self._publish(*overtaken)

    async def _publish(self, subject: str, payload: bytes) -> None:
        try:
            await self._bus.publish(subject, payload)
        except Unavailable:
            return  # Lost; the reader asks again.

    async def _report(self) -> None:
        beat = 0
        while True:
            router = RouterReport(
                router_id="scripted-router",
                beat=beat,
                journal_id="scripted-router-1",
                process_id=0,
                sessions_open=0,
                sessions_accepted=0,
            )
            await self._publish(subjects.router_report(router.router_id), encode(router))
            worker = _worker_report(self._alias, beat=beat)
            await self._publish(subjects.worker_report(worker.worker_id), encode(worker))
            beat += 1
            await asyncio.sleep(seconds(self._report_interval_ns))

    def _start(self, work: Coroutine[object, None, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _text_of(question: DetokenizeIds) -> IdsDetokenized | TextRejected:
    if max(question.token_ids, default=0) >= VOCABULARY_SIZE:
        return TextRejected(
            reason=RejectReason.INVALID, message="scripted: no such token", parameter="token_ids"
        )
    return IdsDetokenized(text="".join(map(chr, question.token_ids)))


def _accepted(session: _Session) -> RequestAccepted:
    return RequestAccepted(
        request_id=session.submission.request_id,
        router_id="scripted-router",
        prompt_tokens=session.script.prompt_tokens,
    )


def _rejection(session: _Session, reason: RejectReason) -> RequestRejected:
    return RequestRejected(
        request_id=session.submission.request_id,
        reason=reason,
        message=f"scripted: {reason}",
        retry_after_ms=session.script.retry_after_ms,
    )


def _tokens(session: _Session, start: int, end: int) -> TokensGenerated:
    return TokensGenerated(
        request_id=session.submission.request_id,
        first_index=start,
        token_ids=tuple(range(100 + start, 100 + end)),
        texts=tuple(session.script.texts[start:end]),
        logprobs=_logprobs(session, start, end),
    )


def _logprobs(session: _Session, start: int, end: int) -> tuple[TokenLogprobs, ...]:
    """Each token with probability 1/2, the best after it with a half of the one before."""
    sampling = session.submission.sampling
    wanted = sampling.logprobs
    if wanted is None:
        return ()
    return tuple(
        TokenLogprobs(
            chosen=_scored(100 + index, session.script.texts[index], 0),
            best=tuple(
                _scored(100 + index + rank, session.script.texts[index] + "~" * rank, rank)
                for rank in range(wanted)
            ),
            prompt=_prompt_scores(session) if sampling.prompt_logprobs and index == 0 else (),
        )
        for index in range(start, end)
    )


def _prompt_scores(session: _Session) -> tuple[TokenLogprobs, ...]:
    """A token per character, the n-th with probability 2^-n; the first one, number 0, is given."""
    return tuple(
        TokenLogprobs(chosen=_scored(ord(character), character, number - 1))
        for number, character in enumerate(session.submission.prompt or "")
    )


def _scored(token_id: int, text: str, rank: int) -> ScoredToken:
    return ScoredToken(token_id=token_id, text=text, logprob=(rank + 1) * math.log(0.5))


def _end(session: _Session) -> RequestFinished | RequestFailed:
    request_id = session.submission.request_id
    script = session.script
    if script.failure is not None:
        message = f"scripted: {script.failure}"
        return RequestFailed(request_id=request_id, reason=script.failure, message=message)
    return RequestFinished(
        request_id=request_id,
        finish_reason=script.finish_reason,
        prompt_tokens=script.prompt_tokens,
        completion_tokens=len(script.texts),
    )


def _worker_report(alias: str, *, beat: int) -> WorkerReport:
    return WorkerReport(
        worker_id="scripted-worker",
        beat=beat,
        alias=alias,
        process_id=0,
        context_tokens_max=2048,
        vocabulary_size=VOCABULARY_SIZE,
        block_tokens=16,
        blocks_total=64,
        blocks_free=64,
        sessions_running=0,
        sessions_waiting=0,
        tokens_waiting=0,
        tokens_generated=0,
        steps=0,
        step_ms_recent=0.0,
    )
