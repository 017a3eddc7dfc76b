"""What a caller may say about a request, and the message that it becomes."""

import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias, TypedDict

from pydantic import JsonValue, ValidationError

from libs.client.errors import RequestRefused
from libs.contracts.online import (
    ChatMessage,
    RejectReason,
    ResponseFormat,
    SamplingParameters,
    SubmitRequest,
)
from libs.contracts.wire import describe

MessageLike: TypeAlias = ChatMessage | Mapping[str, JsonValue]
ToolLike: TypeAlias = Mapping[str, JsonValue]


class RequestArguments(TypedDict, total=False):
    """What `stream` and `complete` take beside the model; exactly one of the three prompts.

    Bounds and defaults are those of SubmitRequest and SamplingParameters.
    """

    prompt: str | None
    messages: Sequence[MessageLike] | None
    prompt_token_ids: Sequence[int] | None
    tools: Sequence[ToolLike]
    max_tokens: int | None
    temperature: float
    top_p: float
    top_k: int | None
    min_p: float
    seed: int | None
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float]
    min_tokens: int
    stop_token_ids: Sequence[int]
    logprobs: int | None
    prompt_logprobs: bool
    stop: str | Sequence[str]
    ignore_eos: bool
    response_format: ResponseFormat | Mapping[str, JsonValue] | None
    priority: int
    expires_after_ms: int | None
    request_id: str | None


_SAMPLING: Final = frozenset(SamplingParameters.model_fields)


def submission_of(arguments: RequestArguments) -> SubmitRequest:
    """Return the message that asks for this; without a request_id it gets a new one.

    Raises: RequestRefused if the arguments are not a valid request; TypeError for an unknown name.
    """
    unknown = sorted(set(arguments) - RequestArguments.__annotations__.keys())
    if unknown:
        raise TypeError(f"no such argument: {', '.join(unknown)}")
    fields: dict[str, Any] = {k: v for k, v in arguments.items() if k not in _SAMPLING}
    sampling = {k: v for k, v in arguments.items() if k in _SAMPLING}
    fields["request_id"] = fields.get("request_id") or uuid.uuid4().hex
    stop = fields.get("stop", ())
    fields["stop"] = (stop,) if isinstance(stop, str) else stop
    if fields.get("messages") is not None:
        fields["messages"] = tuple(chat_message(message) for message in fields["messages"])
    try:
        return SubmitRequest(**fields, sampling=SamplingParameters.model_validate(sampling))
    except ValidationError as error:
        raise RequestRefused(describe(error), reason=RejectReason.INVALID) from error


def chat_message(message: MessageLike) -> ChatMessage:
    """Return the message as one of ours. Raises: RequestRefused."""
    if isinstance(message, ChatMessage):
        return message
    try:
        return ChatMessage.model_validate(message)
    except ValidationError as error:
        raise RequestRefused(describe(error), reason=RejectReason.INVALID) from error
