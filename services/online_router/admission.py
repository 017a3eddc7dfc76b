"""From a submission to a promise: known already, refused, or tokenised, claimed and opened.

The claim on the request id comes before the journal record, and the answer after both: a crash in
between leaves a claim without a session, which the next attempt of the client finds and replaces.
"""

from libs.contracts.journal import record_bytes_estimate
from libs.contracts.online import (
    FailReason,
    RejectReason,
    RequestAccepted,
    RequestFailed,
    RequestRejected,
    SubmitRequest,
)
from libs.contracts.sessions import SessionSpec
from libs.contracts.wire import Encoding
from libs.kernel.units import NS_PER_MS
from services.online_router.commands import (
    ClaimRequest,
    ForwardSubmission,
    ReadJournalTail,
    Reply,
    Tokenize,
)
from services.online_router.events import (
    ClaimHeld,
    ClaimMade,
    ClaimUnavailable,
    JournalTailRead,
    JournalUnavailable,
    PromptRefused,
    PromptTokenized,
    SubmissionMalformed,
    SubmissionReceived,
)
from services.online_router.placement import WorkerView
from services.online_router.replay import replay
from services.online_router.sessions import PROMISED, Phase, Session
from services.online_router.state import RouterState, derived_seed


class Admission:
    """Takes submissions up to the journal record that makes them a promise."""

    def __init__(self, state: RouterState) -> None:
        self._state = state
        self._claim_checks: dict[str, ClaimHeld] = {}

    def submission_received(self, event: SubmissionReceived) -> None:
        """Answer a repeat from what is known; start a new request on its way."""
        state = self._state
        if not event.reply_to:
            state.counters.unanswerable += 1
            return
        session = state.find(event.submission.request_id)
        if session is not None:
            self._answer_repeat(session, event)
            return
        refusal = self._refusal(event)
        if refusal is not None:
            self._reject(event.reply_to, event.encoding, refusal)
            return
        self._begin(event)

    def submission_malformed(self, event: SubmissionMalformed) -> None:
        """Answer what could not be read."""
        if not event.reply_to:
            self._state.counters.unanswerable += 1
            return
        refusal = RequestRejected(
            request_id=event.request_id, reason=RejectReason.MALFORMED, message=event.message
        )
        self._reject(event.reply_to, event.encoding, refusal)

    def prompt_tokenized(self, event: PromptTokenized) -> None:
        """Check the prompt against the model, then claim the request id."""
        session = self._session_of(event.op_id, Phase.TOKENIZING)
        if session is None:
            return
        refusal = self._length_refusal(session, event.prompt_token_ids)
        if refusal is not None:
            self._drop(session, refusal)
            return
        session.move(Phase.CLAIMING)
        self._claim(session)

    def prompt_refused(self, event: PromptRefused) -> None:
        """The prompt or the schema itself is wrong, or too many schemas wait to be looked at."""
        session = self._session_of(event.op_id, Phase.TOKENIZING)
        if session is not None:
            rejection = self._rejection(
                session,
                event.reason,
                event.message,
                is_transient=event.reason in (RejectReason.OVERLOADED, RejectReason.UNAVAILABLE),
            )
            self._drop(session, rejection.model_copy(update={"parameter": event.parameter}))

    def claim_made(self, event: ClaimMade) -> None:
        """The request id is ours: open the session in the journal."""
        state = self._state
        session = self._session_of(event.op_id, Phase.CLAIMING)
        if session is None:
            return
        views = state.views_of(session.alias)
        if not any(view.is_taking or view.report.is_planned for view in views):
            self._drop(session, self._no_worker(session))
            return
        session.move(Phase.OPENING)
        worker_id = state.choose_worker_for(session)
        if worker_id is None:
            session.session_epoch += 1  # nobody's: it waits once its promise is durable
        else:
            state.assign(session, worker_id)
        state.writer.add(session.opened_record())

    def claim_held(self, event: ClaimHeld) -> None:
        """Somebody else has, or had, the request id: hand over, or find out whether they ended."""
        state = self._state
        session = self._session_of(event.op_id, Phase.CLAIMING)
        if session is None:
            return
        owner = state.router_by_journal_id.get(event.journal_id)
        if owner is not None:
            self._forward(session, owner)
        else:
            session.op_id = state.next_op_id("claim-check")
            state.session_by_op_id[session.op_id] = session.request_id
            self._claim_checks[session.op_id] = event
            state.emit(
                ReadJournalTail(
                    op_id=session.op_id, journal_id=event.journal_id, cause_id=state.cause_id
                )
            )

    def claim_unavailable(self, event: ClaimUnavailable) -> None:
        """The broker did not answer: the client tries again."""
        session = self._session_of(event.op_id, Phase.CLAIMING)
        if session is not None:
            self._drop(session, self._unavailable(session))

    def refuse_openings(self) -> frozenset[str]:
        """The journal is full: refuse the sessions that wait to be opened in it; return them."""
        state = self._state
        opening = [
            session
            for session in state.sessions.values()
            if session.phase is Phase.OPENING and not session.is_adopted
        ]
        for session in opening:
            state.unassign(session)
            message = "the journal is full"
            self._drop(
                session,
                self._rejection(session, RejectReason.UNAVAILABLE, message, is_transient=True),
            )
        return frozenset(session.request_id for session in opening)

    def claim_check_read(self, event: JournalTailRead) -> bool:
        """A dead owner's journal: if it is closed and we do not have the session, it never had.

        Returns whether the event belonged here.
        """
        held = self._claim_checks.pop(event.op_id, None)
        if held is None:
            return False
        session = self._session_of(event.op_id, Phase.CLAIMING)
        if session is None:
            return True
        if event.message_id is None or replay(event.records).is_closed:
            self._claim(session, revision=held.revision)
        else:
            message = "the router that had this request is being replaced"
            rejection = self._rejection(
                session, RejectReason.RECOVERING, message, is_transient=True
            )
            self._drop(session, rejection)
        return True

    def claim_check_unavailable(self, event: JournalUnavailable) -> bool:
        """As above, without an answer."""
        if self._claim_checks.pop(event.op_id, None) is None:
            return False
        session = self._session_of(event.op_id, Phase.CLAIMING)
        if session is not None:
            self._drop(session, self._unavailable(session))
        return True

    def cancel_unpromised(self, session: Session) -> None:
        """Forget a session that was never accepted."""
        self._discard(session)
        message = "cancelled by the client"
        answer = RequestFailed(
            request_id=session.request_id, reason=FailReason.CANCELLED, message=message
        )
        self._state.reply(session, answer)

    def discard_unpromised(self) -> None:
        """Forget every session that was never accepted; their clients try again."""
        for request_id in sorted(self._state.sessions):
            session = self._state.sessions[request_id]
            if session.phase in (Phase.TOKENIZING, Phase.CLAIMING):
                self._drop(session, self._unavailable(session))

    # ------------------------------------------------------------------ first look

    def _answer_repeat(self, session: Session, event: SubmissionReceived) -> None:
        session.reply_to = event.reply_to
        session.encoding = event.encoding
        if session.phase not in PROMISED:
            return
        self._state.reply(session, self.accepted(session))
        self._state.relay_from(session, event.submission.tokens_received)

    def accepted(self, session: Session) -> RequestAccepted:
        """The promise, for the client."""
        return RequestAccepted(
            request_id=session.request_id,
            router_id=self._state.options.router_id,
            prompt_tokens=len(session.known_spec().prompt_token_ids),
        )

    def _refusal(self, event: SubmissionReceived) -> RequestRejected | None:
        state = self._state
        request_id = event.submission.request_id
        if event.alias not in state.options.aliases:
            return RequestRejected(
                request_id=request_id,
                reason=RejectReason.MODEL_NOT_FOUND,
                message=f"the model '{event.alias}' is not served here",
                parameter="model",
            )
        if len(state.sessions) >= state.options.sessions_max:
            return self._transient(request_id, RejectReason.OVERLOADED, "too many open requests")
        if not state.writer.is_healthy:
            return self._transient(
                request_id, RejectReason.UNAVAILABLE, "the journal does not answer"
            )
        if not state.views_of(event.alias):
            return self._transient(
                request_id, RejectReason.NO_WORKER, f"no worker serves '{event.alias}' now"
            )
        return None

    def _begin(self, event: SubmissionReceived) -> None:
        state = self._state
        submission = event.submission
        expires_after_ms = submission.expires_after_ms
        lifetime_ns = None if expires_after_ms is None else expires_after_ms * NS_PER_MS
        session = Session(
            request_id=submission.request_id,
            alias=event.alias,
            reply_to=event.reply_to,
            encoding=event.encoding,
            submission=submission,
            expires_at_ns=None if lifetime_ns is None else state.now_ns + lifetime_ns,
            expires_at_unix_ns=(
                None if lifetime_ns is None else event.received_at_unix_ns + lifetime_ns
            ),
            op_id=state.next_op_id("tokenize"),
            received_at_ns=state.now_ns,
        )
        state.sessions[session.request_id] = session
        state.session_by_op_id[session.op_id] = session.request_id
        state.emit(
            Tokenize(
                op_id=session.op_id,
                alias=event.alias,
                submission=submission,
                cause_id=state.cause_id,
            )
        )

    # ------------------------------------------------------------------ against the model

    def _length_refusal(
        self, session: Session, prompt_token_ids: tuple[int, ...]
    ) -> RequestRejected | None:
        """Set the spec, or say why the prompt does not fit."""
        views = self._state.views_of(session.alias)
        if not views:
            return self._no_worker(session)
        if not prompt_token_ids:
            return self._rejection(session, RejectReason.INVALID, "the prompt is empty")
        view = max(views, key=lambda v: v.capacity_tokens)
        submission = self._submission(session)
        refusal = _fit_refusal(submission, prompt_tokens=len(prompt_token_ids), view=view)
        if refusal is not None:
            return self._rejection(session, RejectReason.CONTEXT_LENGTH_EXCEEDED, refusal)
        vocabulary_size = view.report.vocabulary_size
        parameter = _beyond_vocabulary(submission, prompt_token_ids, vocabulary_size)
        if parameter is not None:
            message = f"token ids must lie below the vocabulary size of {vocabulary_size}"
            rejection = self._rejection(session, RejectReason.INVALID, message)
            return rejection.model_copy(update={"parameter": parameter})
        scores_refusal = self._scores_refusal(session, prompt_tokens=len(prompt_token_ids))
        if scores_refusal is not None:
            return scores_refusal
        session.spec = _spec_of(
            session, submission, prompt_token_ids, capacity_tokens=view.capacity_tokens
        )
        record_bytes = record_bytes_estimate(session.opened_record())
        if record_bytes > self._state.options.record_bytes_max:
            message = f"the prompt takes {record_bytes} bytes in the journal, which is too large"
            return self._rejection(session, RejectReason.TOO_LARGE, message)
        return None

    def _scores_refusal(self, session: Session, *, prompt_tokens: int) -> RequestRejected | None:
        """Refuse to score a prompt whose scores would not fit into one message."""
        sampling = self._submission(session).sampling
        tokens_max = self._state.options.scored_places_max(sampling.logprobs or 0)
        if not sampling.prompt_logprobs or prompt_tokens <= tokens_max:
            return None
        message = (
            f"the prompt has {prompt_tokens} tokens; with {sampling.logprobs} log probabilities "
            f"for each at most {tokens_max} can be scored"
        )
        rejection = self._rejection(session, RejectReason.TOO_LARGE, message)
        return rejection.model_copy(update={"parameter": "logprobs"})

    def _claim(self, session: Session, *, revision: int | None = None) -> None:
        state = self._state
        session.op_id = state.next_op_id("claim")
        state.session_by_op_id[session.op_id] = session.request_id
        state.emit(
            ClaimRequest(
                op_id=session.op_id,
                request_id=session.request_id,
                journal_id=state.writer.journal_id,
                revision=revision,
                cause_id=state.cause_id,
            )
        )

    def _forward(self, session: Session, owner: str) -> None:
        self._discard(session)
        self._state.emit(
            ForwardSubmission(
                router_id=owner,
                alias=session.alias,
                submission=self._submission(session),
                reply_to=session.reply_to,
                encoding=session.encoding,
                cause_id=self._state.cause_id,
            )
        )

    # ------------------------------------------------------------------ small things

    def _session_of(self, op_id: str, phase: Phase) -> Session | None:
        """Return the session that waits for this operation in this phase, if it still does."""
        request_id = self._state.session_by_op_id.pop(op_id, None)
        session = self._state.sessions.get(request_id or "")
        if session is None or session.op_id != op_id or session.phase is not phase:
            return None
        return session

    def _submission(self, session: Session) -> SubmitRequest:
        assert session.submission is not None, "only an adopted session has no submission"
        return session.submission

    def _discard(self, session: Session) -> None:
        self._state.sessions.pop(session.request_id, None)
        self._state.session_by_op_id.pop(session.op_id, None)

    def _drop(self, session: Session, rejection: RequestRejected) -> None:
        self._discard(session)
        self._reject(session.reply_to, session.encoding, rejection)

    def _reject(self, reply_to: str, encoding: Encoding, rejection: RequestRejected) -> None:
        self._state.counters.rejected += 1
        self._state.counters.rejected_by_reason[rejection.reason] += 1
        self._state.emit(
            Reply(
                reply_to=reply_to,
                encoding=encoding,
                message=rejection,
                cause_id=self._state.cause_id,
            )
        )

    def _no_worker(self, session: Session) -> RequestRejected:
        message = f"no worker serves '{session.alias}' now"
        return self._rejection(session, RejectReason.NO_WORKER, message, is_transient=True)

    def _unavailable(self, session: Session) -> RequestRejected:
        message = "the broker does not answer"
        return self._rejection(session, RejectReason.UNAVAILABLE, message, is_transient=True)

    def _rejection(
        self, session: Session, reason: RejectReason, message: str, *, is_transient: bool = False
    ) -> RequestRejected:
        if is_transient:
            return self._transient(session.request_id, reason, message)
        return RequestRejected(request_id=session.request_id, reason=reason, message=message)

    def _transient(self, request_id: str, reason: RejectReason, message: str) -> RequestRejected:
        return RequestRejected(
            request_id=request_id,
            reason=reason,
            message=message,
            retry_after_ms=self._state.options.retry_after_ns // NS_PER_MS,
        )


def _fit_refusal(submission: SubmitRequest, *, prompt_tokens: int, view: WorkerView) -> str | None:
    capacity = view.capacity_tokens
    wanted = prompt_tokens + (submission.max_tokens or 1)
    if wanted <= capacity:
        return None
    return (
        f"this model's context is {capacity} tokens; the prompt has {prompt_tokens} and "
        f"{submission.max_tokens or 'at least 1'} were asked for"
    )


def _beyond_vocabulary(
    submission: SubmitRequest, prompt_token_ids: tuple[int, ...], vocabulary_size: int
) -> str | None:
    """Return the field with a token that the model does not have, if there is one."""
    sampling = submission.sampling
    for parameter, token_ids in (
        ("prompt_token_ids", prompt_token_ids),
        ("logit_bias", sampling.logit_bias),
        ("stop_token_ids", sampling.stop_token_ids),
    ):
        if max(token_ids, default=0) >= vocabulary_size:
            return parameter
    return None


def _spec_of(
    session: Session,
    submission: SubmitRequest,
    prompt_token_ids: tuple[int, ...],
    *,
    capacity_tokens: int,
) -> SessionSpec:
    sampling = submission.sampling
    if sampling.seed is None:
        sampling = sampling.model_copy(update={"seed": derived_seed(session.request_id)})
    return SessionSpec(
        request_id=session.request_id,
        alias=session.alias,
        prompt_token_ids=prompt_token_ids,
        max_tokens=submission.max_tokens or capacity_tokens - len(prompt_token_ids),
        sampling=sampling,
        stop=submission.stop,
        ignore_eos=submission.ignore_eos,
        priority=submission.priority,
        tenant=submission.tenant,
        answer_schema=submission.answer_schema,
    )
