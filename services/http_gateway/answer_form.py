"""What chat and completions share: how a request becomes a message, an answer becomes JSON."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeAlias

from pydantic import JsonValue, ValidationError

from libs.client.token_stream import Usage
from libs.contracts.online import (
    ChatMessage,
    FinishReason,
    SamplingParameters,
    SubmitRequest,
)
from services.http_gateway.errors import from_validation
from services.http_gateway.schemas import ChatRequest, CompletionRequest

JsonObject: TypeAlias = Mapping[str, JsonValue]

DEFAULT_TEMPERATURE: Final = 1.0
DEFAULT_TOP_P: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerHead:
    """What every object of one answer repeats."""

    answer_id: str
    created_at_unix_s: int
    model: str
    """As the caller wrote it."""


class AnswerForm(Protocol):
    """The shape of an endpoint's answers; pure."""

    def opening(self) -> JsonObject | None:
        """Return the chunk before the first text, where there is one."""
        ...

    def piece(self, text: str) -> JsonObject:
        """Return a chunk with more text."""
        ...

    def ending(self, finish_reason: FinishReason) -> JsonObject:
        """Return the chunk that says why the text ends; comes once."""
        ...

    def usage_only(self) -> JsonObject:
        """Return a chunk without choices, to carry the usage."""
        ...

    def whole(self, text: str, *, finish_reason: FinishReason, usage: Usage) -> JsonObject:
        """Return the answer in one object."""
        ...


def usage_object(usage: Usage) -> JsonObject:
    """Return the usage in OpenAI's fields."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def submission_of(
    request: ChatRequest | CompletionRequest,
    *,
    request_id: str,
    expires_after_ms: int,
    max_tokens: int | None,
    prompt: str | None = None,
    messages: tuple[ChatMessage, ...] | None = None,
    prompt_token_ids: tuple[int, ...] | None = None,
) -> SubmitRequest:
    """Return the message that asks for this. Raises: ApiError for what the contract refuses."""
    stop = request.stop
    sampling: dict[str, Any] = {
        "temperature": _given(request.temperature, DEFAULT_TEMPERATURE),
        "top_p": _given(request.top_p, DEFAULT_TOP_P),
        "top_k": request.top_k if request.top_k is not None and request.top_k > 0 else None,
        "seed": request.seed,
    }
    try:
        return SubmitRequest(
            request_id=request_id,
            prompt=prompt,
            messages=messages,
            prompt_token_ids=prompt_token_ids,
            max_tokens=max_tokens,
            sampling=SamplingParameters(**sampling),
            stop=(stop,) if isinstance(stop, str) else tuple(stop or ()),
            ignore_eos=bool(request.ignore_eos),
            priority=request.priority or 0,
            expires_after_ms=expires_after_ms,
        )
    except ValidationError as error:
        raise from_validation(error) from None


def _given(value: float | None, default: float) -> float:
    return default if value is None else value
