"""Examples of what carries a request: one of every message, as it was at its release."""

from libs.contracts.journal import (
    JournalClosed,
    JournalTakenOver,
    SessionDispatched,
    SessionFailed,
    SessionOpened,
)
from libs.contracts.online import (
    CancelRequest,
    ChatMessage,
    FailReason,
    FinishReason,
    RejectReason,
    RequestAccepted,
    RequestFailed,
    RequestFinished,
    RequestRejected,
    SamplingParameters,
    SubmitRequest,
    TokensGenerated,
)
from libs.contracts.sessions import (
    AcknowledgeTokens,
    EndSession,
    RefuseReason,
    SessionRefused,
    SessionSpec,
    SessionStarted,
    StartSession,
    TokenReceipt,
)
from libs.contracts.text import (
    DetokenizeIds,
    IdsDetokenized,
    TextRejected,
    TextTokenized,
    TokenizeText,
)
from libs.contracts.token_step import SessionTokens, TokenStep
from libs.contracts.wire import Encoding, Message

SAMPLING = SamplingParameters(temperature=0.7, top_p=0.9, top_k=40, seed=-7)
SPEC = SessionSpec(
    request_id="request-1",
    alias="tide-tiny",
    prompt_token_ids=(1, 300, 70000),
    max_tokens=64,
    sampling=SAMPLING,
    stop=("\n\n", "Ende"),
    ignore_eos=True,
    priority=3,
)
TOKENS = SessionTokens(
    request_id="request-1",
    session_epoch=2,
    first_index=5,
    token_ids=(17, 4),
    texts=("flood", " tide ≈"),
    finish_reason=FinishReason.STOP,
)
ONLINE: tuple[Message, ...] = (
    SubmitRequest(
        request_id="request-1",
        messages=(ChatMessage(role="user", content="What does str.split do?"),),
        max_tokens=64,
        sampling=SAMPLING,
        stop=("\n\n",),
        ignore_eos=True,
        priority=3,
        expires_after_ms=30_000,
        tokens_received=4,
    ),
    RequestAccepted(request_id="request-1", router_id="router-1", prompt_tokens=3),
    RequestRejected(
        request_id="request-1",
        reason=RejectReason.OVERLOADED,
        message="256 requests are open",
        parameter="prompt",
        retry_after_ms=500,
    ),
    TokensGenerated(
        request_id="request-1", first_index=5, token_ids=(17, 4), texts=("flood", " tide ≈")
    ),
    RequestFinished(
        request_id="request-1",
        finish_reason=FinishReason.LENGTH,
        prompt_tokens=3,
        completion_tokens=64,
    ),
    RequestFailed(request_id="request-1", reason=FailReason.EXPIRED, message="after 30 s"),
    CancelRequest(request_id="request-1"),
)
TEXT: tuple[Message, ...] = (
    TokenizeText(
        messages=(ChatMessage(role="user", content="What does str.split do?"),),
        add_special_tokens=False,
        with_token_texts=True,
    ),
    DetokenizeIds(token_ids=(1, 300, 70000)),
    TextTokenized(token_ids=(1, 300), token_texts=("<s>", "\u2581tide")),
    IdsDetokenized(text="tide ≈"),
    TextRejected(reason=RejectReason.INVALID, message="no chat template", parameter="messages"),
)
SESSIONS: tuple[Message, ...] = (
    StartSession(router_id="router-1", session_epoch=2, spec=SPEC, generated_token_ids=(17,)),
    AcknowledgeTokens(
        router_id="router-1",
        receipts=(
            TokenReceipt(
                request_id="request-1", session_epoch=2, next_index=7, is_resend_wanted=True
            ),
        ),
    ),
    EndSession(request_id="request-1", session_epoch=2),
    SessionStarted(worker_id="worker-1", request_id="request-1", session_epoch=2),
    SessionRefused(
        worker_id="worker-1",
        request_id="request-1",
        session_epoch=2,
        reason=RefuseReason.FULL,
        message="1024 sessions are held",
    ),
)
STEP = TokenStep(worker_id="worker-1", step_id=120, entries=(TOKENS,))
BATCH = (
    SessionOpened(
        spec=SPEC,
        reply_to="_INBOX.a.1",
        encoding=Encoding.JSON,
        session_epoch=1,
        worker_id="worker-1",
        expires_at_unix_ns=1_800_000_000_000_000_000,
        generated_token_ids=(17,),
        generated_texts=("flood",),
    ),
    SessionDispatched(request_id="request-1", session_epoch=2, worker_id="worker-2"),
    TOKENS,
    SessionFailed(request_id="request-1", reason=FailReason.WORKERS_DIED, message="three times"),
    JournalTakenOver(by_router_id="router-2", by_journal_id="router-2-a"),
    JournalClosed(by_journal_id="router-2-a"),
)
