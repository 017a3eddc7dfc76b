"""What routers and workers say to each other about sessions.

A session is one accepted request on its way through the fleet. `session_epoch` says who may emit
its tokens: it grows with every dispatch, and a worker or router drops what is older.
"""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from libs.contracts.online import SamplingParameters, TokenId
from libs.contracts.wire import Codec, Message, RequestId, Tenant


class SessionSpec(Message):
    """Everything a worker needs to run a session from any point; what the journal keeps of it."""

    request_id: RequestId
    alias: str
    prompt_token_ids: tuple[TokenId, ...]
    max_tokens: int = Field(ge=1)
    sampling: SamplingParameters
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    priority: int = 0
    tenant: Tenant = ""
    answer_schema: str | None = Field(
        default=None, description="the JSON schema, as text, that the answer is held to"
    )


class StartSession(Message):
    """Run this session from the tokens generated so far.

    Sent by the owning router to `worker_control(worker_id)`. Answered by SessionStarted or
    SessionRefused; lost: the router sends it again. Doubled: answered again. A worker that
    already runs the session under a lower epoch goes on under the new one without recomputing.
    """

    type: Literal["start_session.v1"] = "start_session.v1"
    router_id: str
    session_epoch: int = Field(ge=1)
    spec: SessionSpec
    generated_token_ids: tuple[TokenId, ...] = ()


class TokenReceipt(Message):
    """The router has journaled all tokens of this session below `next_index`."""

    request_id: RequestId
    session_epoch: int = Field(ge=1)
    next_index: int = Field(ge=0)
    is_resend_wanted: bool = False


class AcknowledgeTokens(Message):
    """What the router has journaled; the worker forgets those tokens.

    Sent by a router to a worker after a journal commit, for all sessions in it at once, and as a
    probe of a silent session. Lost: the worker sends the tokens again. Doubled or late: harmless,
    receipts only grow. For a session the worker does not know it answers SessionRefused.
    """

    type: Literal["acknowledge_tokens.v1"] = "acknowledge_tokens.v1"
    router_id: str
    receipts: tuple[TokenReceipt, ...]


class EndSession(Message):
    """Forget this session and free its KV, whatever its state.

    Sent by a router to a worker when a request is cancelled, expired, moved elsewhere, or unknown
    to the router. Lost: the worker keeps sending tokens and is told again. Doubled: ignored.
    """

    type: Literal["end_session.v1"] = "end_session.v1"
    request_id: RequestId
    session_epoch: int = Field(ge=1)


class SessionStarted(Message):
    """The worker holds this session under this epoch.

    Sent by a worker to `router_control(router_id)`, in answer to StartSession or to a probe.
    Lost: asked again. Doubled: ignored.
    """

    type: Literal["session_started.v1"] = "session_started.v1"
    worker_id: str
    request_id: RequestId
    session_epoch: int = Field(ge=1)


class RefuseReason(StrEnum):
    """Why a worker does not run a session."""

    INVALID = "invalid"
    FULL = "full"
    DRAINING = "draining"
    UNKNOWN_SESSION = "unknown_session"
    STALE_EPOCH = "stale_epoch"
    WRONG_MODEL = "wrong_model"
    ENGINE_ERROR = "engine_error"
    MOVED = "moved"
    """The replica changes its shape; the session goes on elsewhere, its KV perhaps waiting."""


class SessionRefused(Message):
    """The worker does not run this session; the router places it elsewhere or fails it.

    Sent by a worker to `router_control(router_id)`. Lost: asked again. Doubled, or for another
    epoch than the current one: ignored.
    """

    type: Literal["session_refused.v1"] = "session_refused.v1"
    worker_id: str
    request_id: RequestId
    session_epoch: int = Field(ge=1)
    reason: RefuseReason
    message: str = ""
    target_worker_id: str = Field(
        default="", description="with moved: where to go on; empty: the router chooses"
    )


ToWorker = StartSession | AcknowledgeTokens | EndSession
ToRouter = SessionStarted | SessionRefused

WORKER_CONTROL: Codec[ToWorker] = Codec(Annotated[ToWorker, Field(discriminator="type")])
ROUTER_CONTROL: Codec[ToRouter] = Codec(Annotated[ToRouter, Field(discriminator="type")])
