"""What a client and a router say to each other about one online request.

The life of a request on the wire: SubmitRequest -> RequestAccepted | RequestRejected, then any
number of TokensGenerated, then exactly one of RequestFinished | RequestFailed, all on the reply
subject of the submission. Publishing the same SubmitRequest again (same request_id, with
`tokens_received` set) is always safe: it is how a client makes sure that it was accepted, and how
it asks for what it missed. An ended request is remembered for half a minute, an answer of offline
work for an hour or until it is cancelled; repeated later it is computed anew, from the same seed to
the same answer.
"""

import json
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, model_validator

from libs.contracts.wire import Codec, Message, RequestId, Tenant, WireJson

INT64_MAX = 2**63 - 1
STOP_STRINGS_MAX = 4
STOP_STRING_CHARACTERS_MAX = 256
MESSAGES_MAX = 4096
MAX_TOKENS_LIMIT = 1_000_000
TEMPERATURE_MAX = 2.0
TOP_K_MAX = 1_000_000
LOGIT_BIAS_ENTRIES_MAX = 1024
STOP_TOKEN_IDS_MAX = 64
TOP_LOGPROBS_MAX = 20
TOOLS_MAX = 128
SCHEMA_CHARACTERS_MAX = 64 * 1024

TokenId = Annotated[int, Field(ge=0, lt=2**31)]


class FinishReason(StrEnum):
    """Why generation ended well: a stop condition, or max_tokens or the context was reached."""

    STOP = "stop"
    LENGTH = "length"


class RejectReason(StrEnum):
    """Why a submission was not accepted; nothing was done."""

    MALFORMED = "malformed"
    INVALID = "invalid"
    MODEL_NOT_FOUND = "model_not_found"
    CONTEXT_LENGTH_EXCEEDED = "context_length_exceeded"
    TOO_LARGE = "too_large"
    OVERLOADED = "overloaded"
    NO_WORKER = "no_worker"
    RECOVERING = "recovering"
    UNAVAILABLE = "unavailable"


class FailReason(StrEnum):
    """Why an accepted request ended without a full answer."""

    CANCELLED = "cancelled"
    EXPIRED = "expired"
    WORKERS_DIED = "workers_died"
    REFUSED = "refused"
    ENGINE_ERROR = "engine_error"


class ChatMessage(Message):
    """One message of a conversation; rendered by the model's own chat template."""

    role: str = Field(min_length=1, max_length=64)
    content: str
    name: str | None = Field(default=None, max_length=64)
    tool_calls: tuple[dict[str, WireJson], ...] = Field(
        default=(), max_length=TOOLS_MAX, description="of an earlier answer, as OpenAI writes them"
    )
    tool_call_id: str | None = Field(default=None, max_length=256)


class SamplingParameters(Message):
    """How tokens are drawn. Temperature 0 is greedy; noise depends on (seed, position) alone."""

    temperature: float = Field(default=1.0, ge=0.0, le=TEMPERATURE_MAX)
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    top_k: int | None = Field(default=None, ge=1, le=TOP_K_MAX)
    seed: int | None = Field(
        default=None,
        ge=-INT64_MAX - 1,
        le=INT64_MAX,
        description="None derives the seed from request_id, so that a resumed request continues",
    )
    min_p: float = Field(
        default=0.0, ge=0.0, le=1.0, description="drops tokens below this share of the best one's"
    )
    repetition_penalty: float = Field(
        default=1.0, gt=0.0, le=2.0, description="divides the scores of tokens seen before"
    )
    presence_penalty: float = Field(default=0.0, ge=-2.0, le=2.0)
    frequency_penalty: float = Field(default=0.0, ge=-2.0, le=2.0)
    logit_bias: dict[TokenId, Annotated[float, Field(ge=-100.0, le=100.0)]] = Field(
        default_factory=dict, max_length=LOGIT_BIAS_ENTRIES_MAX
    )
    min_tokens: int = Field(
        default=0, ge=0, le=MAX_TOKENS_LIMIT, description="no stop token before this many tokens"
    )
    stop_token_ids: tuple[TokenId, ...] = Field(default=(), max_length=STOP_TOKEN_IDS_MAX)
    logprobs: int | None = Field(
        default=None,
        ge=0,
        le=TOP_LOGPROBS_MAX,
        description="report each token's log probability, and those of this many best ones",
    )
    prompt_logprobs: bool = Field(
        default=False, description="report the prompt's as well, with the first token's"
    )


class ResponseFormat(Message):
    """What the answer must be, as OpenAI writes it: any text, an object, or what fits a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: dict[str, WireJson] | None = Field(
        default=None, description="its member `schema` is the JSON schema"
    )

    @model_validator(mode="after")
    def _has_a_schema(self) -> "ResponseFormat":
        is_needed = self.type == "json_schema"
        if is_needed and not isinstance((self.json_schema or {}).get("schema"), dict):
            raise ValueError("json_schema.schema is missing: it must be an object")
        if not is_needed and self.json_schema is not None:
            raise ValueError("json_schema goes with the type json_schema only")
        if len(self.answer_schema or "") > SCHEMA_CHARACTERS_MAX:
            raise ValueError(f"the schema has more than {SCHEMA_CHARACTERS_MAX} characters")
        return self

    @property
    def answer_schema(self) -> str | None:
        """The JSON schema that holds the answer, as text with its keys in order; None: no hold."""
        if self.type == "text":
            return None
        schema = {"type": "object"} if self.json_schema is None else self.json_schema["schema"]
        return json.dumps(schema, separators=(",", ":"), ensure_ascii=False)


class SubmitRequest(Message):
    """Asks for one answer.

    Sent by a client, with a reply subject, to `online(alias)`. Handled by one router of the queue
    group. Lost or unanswered: the client publishes it again with the same request_id. Doubled:
    answered as the first, and what was generated so far is sent again from `tokens_received`.
    """

    type: Literal["submit_request.v1"] = "submit_request.v1"
    request_id: RequestId
    prompt: str | None = None
    messages: tuple[ChatMessage, ...] | None = Field(default=None, max_length=MESSAGES_MAX)
    prompt_token_ids: tuple[TokenId, ...] | None = None
    tools: tuple[dict[str, WireJson], ...] = Field(
        default=(),
        max_length=TOOLS_MAX,
        description="definitions for the chat template, as OpenAI writes them; with messages only",
    )
    max_tokens: int | None = Field(
        default=None, ge=1, le=MAX_TOKENS_LIMIT, description="None: up to the model's context"
    )
    sampling: SamplingParameters = SamplingParameters()
    stop: tuple[Annotated[str, Field(min_length=1, max_length=STOP_STRING_CHARACTERS_MAX)], ...] = (
        Field(default=(), max_length=STOP_STRINGS_MAX)
    )
    ignore_eos: bool = False
    response_format: ResponseFormat | None = Field(
        default=None, description="holds the answer to JSON; the prompt had better ask for it too"
    )
    priority: int = Field(
        default=0,
        ge=-100,
        le=100,
        description="higher is served first; below 0 is offline work, which yields to all else",
    )
    tenant: Tenant = Field(default="", description="on whose behalf")
    expires_after_ms: int | None = Field(
        default=None, ge=1, le=86_400_000, description="fails as expired after this long"
    )
    tokens_received: int = Field(
        default=0, ge=0, description="on a repeat: how many tokens the client already has"
    )

    @property
    def answer_schema(self) -> str | None:
        """See ResponseFormat.answer_schema."""
        return None if self.response_format is None else self.response_format.answer_schema

    @model_validator(mode="after")
    def _has_one_prompt(self) -> "SubmitRequest":
        given = [
            name
            for name in ("prompt", "messages", "prompt_token_ids")
            if getattr(self, name) is not None
        ]
        if len(given) != 1:
            raise ValueError("give exactly one of prompt, messages and prompt_token_ids")
        if not getattr(self, given[0]):
            raise ValueError(f"{given[0]} is empty")
        return self

    @model_validator(mode="after")
    def _is_consistent(self) -> "SubmitRequest":
        if self.max_tokens is not None and self.sampling.min_tokens > self.max_tokens:
            raise ValueError("min_tokens must not exceed max_tokens")
        if self.tools and self.messages is None:
            raise ValueError("tools go with messages only")
        if self.sampling.prompt_logprobs and self.sampling.logprobs is None:
            raise ValueError("prompt_logprobs goes with logprobs only")
        return self


class RequestAccepted(Message):
    """The request is durable and will end exactly once.

    Sent by the owning router to the client. Lost: the client repeats its submission. Doubled: a
    client ignores the second.
    """

    type: Literal["request_accepted.v1"] = "request_accepted.v1"
    request_id: RequestId
    router_id: str
    prompt_tokens: int = Field(ge=0)


class RequestRejected(Message):
    """The submission was refused and nothing was done.

    Sent by a router to the client. With `retry_after_ms` the same submission may succeed later;
    without it, it never will. `request_id` is empty where the message could not be read.
    """

    type: Literal["request_rejected.v1"] = "request_rejected.v1"
    request_id: str = ""
    reason: RejectReason
    message: str
    parameter: str | None = None
    retry_after_ms: int | None = Field(default=None, ge=0)


class ScoredToken(Message):
    """A token with its log probability under the model's own distribution, before sampling."""

    token_id: TokenId
    text: str
    """The token decoded by itself; U+FFFD where it is part of a character."""
    logprob: float


class TokenLogprobs(Message):
    """What was known of one generated token: itself, and the best ones at its place."""

    chosen: ScoredToken
    best: tuple[ScoredToken, ...] = Field(default=(), max_length=TOP_LOGPROBS_MAX)
    prompt: tuple["TokenLogprobs", ...] = Field(
        default=(),
        description="with the first token, if asked for: one per token of the prompt, whose own "
        "first one is given, at a log probability of 0",
    )

    @property
    def scored_tokens(self) -> int:
        """How many ScoredTokens it holds, the prompt's included; what its size depends on."""
        return 1 + len(self.best) + sum(item.scored_tokens for item in self.prompt)


class TokensGenerated(Message):
    """Tokens `first_index ..` of the answer, each with the text it adds (may be empty).

    Sent by the owning router to the client, only after the tokens are in the journal. Doubled or
    overlapping: a reader drops the indices it has. Lost: the reader sees a gap, or silence, and
    repeats its submission.
    """

    type: Literal["tokens_generated.v1"] = "tokens_generated.v1"
    request_id: RequestId
    first_index: int = Field(ge=0)
    token_ids: tuple[TokenId, ...]
    texts: tuple[str, ...]
    logprobs: tuple[TokenLogprobs, ...] = Field(
        default=(), description="one per token where the request asked for them, else empty"
    )


class RequestFinished(Message):
    """The answer is complete after `completion_tokens` tokens.

    Sent by the owning router to the client, after the last TokensGenerated. A reader that has
    fewer tokens repeats its submission. Doubled: ignored.
    """

    type: Literal["request_finished.v1"] = "request_finished.v1"
    request_id: RequestId
    finish_reason: FinishReason
    prompt_tokens: int = Field(ge=0)
    completion_tokens: int = Field(ge=0)


class RequestFailed(Message):
    """The request ended without a full answer; tokens already sent stay valid.

    Sent by the owning router to the client, once. Doubled: ignored.
    """

    type: Literal["request_failed.v1"] = "request_failed.v1"
    request_id: RequestId
    reason: FailReason
    message: str


class CancelRequest(Message):
    """Stop this request and free what it holds; of an ended one, forget the answer.

    Sent by a client to `cancel(request_id)`; every router hears it, the owner acts. Lost: the
    request runs to its end, and is forgotten in time. Doubled: ignored.
    """

    type: Literal["cancel_request.v1"] = "cancel_request.v1"
    request_id: RequestId


ToClient = RequestAccepted | RequestRejected | TokensGenerated | RequestFinished | RequestFailed

SUBMISSIONS: Codec[SubmitRequest] = Codec(SubmitRequest)
CANCELLATIONS: Codec[CancelRequest] = Codec(CancelRequest)
ANSWERS: Codec[ToClient] = Codec(Annotated[ToClient, Field(discriminator="type")])
