"""OpenAI's requests as far as they are served: unknown fields are accepted, nulls mean absent.

Fields that exist elsewhere, are not served here and would change the answer if they were ignored
are refused by name: see `require_served`.
"""

from collections.abc import Mapping
from typing import Final, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from libs.contracts.online import (
    INT64_MAX,
    MAX_TOKENS_LIMIT,
    STOP_STRINGS_MAX,
    TEMPERATURE_MAX,
    TOP_K_MAX,
)
from services.http_gateway.errors import from_validation, invalid

MODEL_NAME_CHARACTERS_MAX: Final = 256


class RequestPart(BaseModel):
    """Base of everything a caller sends. Unknown fields are kept, so that they can be judged."""

    model_config = ConfigDict(frozen=True, extra="allow")


class StreamOptions(RequestPart):
    """What to put into a stream beside the text."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class GenerationRequest(RequestPart):
    """What the endpoints have in common."""

    model: str = Field(min_length=1, max_length=MODEL_NAME_CHARACTERS_MAX)
    max_tokens: int | None = Field(default=None, ge=1, le=MAX_TOKENS_LIMIT)
    temperature: float | None = Field(default=None, ge=0.0, le=TEMPERATURE_MAX)
    top_p: float | None = Field(default=None, gt=0.0, le=1.0)
    top_k: int | None = Field(default=None, ge=-1, le=TOP_K_MAX)
    """Our own; 0 and -1 mean all tokens, as other servers have it."""
    seed: int | None = Field(default=None, ge=-INT64_MAX - 1, le=INT64_MAX)
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    ignore_eos: bool | None = None
    """Our own: do not stop at the model's end token."""
    min_tokens: int | None = Field(default=None, ge=0, le=MAX_TOKENS_LIMIT)
    priority: int | None = Field(default=None, ge=-100, le=100)
    """Our own: higher is served first."""


class ContentPart(RequestPart):
    """One part of a message; text is the only kind served."""

    type: str
    text: str | None = None


class Message(RequestPart):
    """One message of a conversation; the model's template knows the roles."""

    role: str = Field(min_length=1, max_length=64)
    content: str | list[ContentPart] | None = None


class ChatRequest(GenerationRequest):
    """POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=MAX_TOKENS_LIMIT)


class CompletionRequest(GenerationRequest):
    """POST /v1/completions."""

    prompt: str | list[int] | list[str] | list[list[int]]


RequestT = TypeVar("RequestT", ChatRequest, CompletionRequest)

# Field -> values that ask for nothing beyond what is served. Null always does.
_UNSERVED: Final[Mapping[str, tuple[JsonValue, ...]]] = {
    "n": (1,),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "length_penalty": (1,),
    "min_p": (0,),
    "use_beam_search": (False,),
    "stop_token_ids": ([],),
    "allowed_token_ids": (),
    "bad_words": ([],),
    "prompt_logprobs": (),
    "response_format": ({"type": "text"},),
    "structured_outputs": ({},),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "echo": (False,),
    "add_special_tokens": (),
}
_UNSERVED_BY_CHAT: Final[Mapping[str, tuple[JsonValue, ...]]] = {
    **_UNSERVED,
    "logprobs": (False,),
    "top_logprobs": (0,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "web_search_options": (),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "documents": ([],),
}
_UNSERVED_BY_COMPLETIONS: Final[Mapping[str, tuple[JsonValue, ...]]] = {
    **_UNSERVED,
    "logprobs": (),  # here 0 asks for the chosen token's
    "best_of": (1,),
    "suffix": ("",),
}
_UNSERVED_IN_MESSAGES: Final[Mapping[str, tuple[JsonValue, ...]]] = {
    "tool_calls": ([],),
    "function_call": (),
    "audio": (),
}


def parse(shape: type[RequestT], body: bytes) -> RequestT:
    """Return the request in this body. Raises: ApiError that names the field."""
    try:
        request: RequestT = shape.model_validate_json(body)
    except ValidationError as error:
        raise from_validation(error) from None
    require_served(request)
    return request


def require_served(request: ChatRequest | CompletionRequest) -> None:
    """Refuse what is not served and would change the answer. Raises: ApiError."""
    match request:
        case ChatRequest():
            _require_neutral(request, _UNSERVED_BY_CHAT)
            for index, message in enumerate(request.messages):
                _require_neutral(message, _UNSERVED_IN_MESSAGES, prefix=f"messages[{index}].")
        case CompletionRequest():
            _require_neutral(request, _UNSERVED_BY_COMPLETIONS)
    stop = request.stop
    if isinstance(stop, list) and len(stop) > STOP_STRINGS_MAX:
        raise invalid(f"stop: at most {STOP_STRINGS_MAX} strings", parameter="stop")
    if request.min_tokens and not request.ignore_eos:
        explanation = "min_tokens is served only together with ignore_eos"
        raise invalid(explanation, parameter="min_tokens")
    if request.stream_options is not None and not request.stream:
        explanation = "stream_options may be given only when stream is true"
        raise invalid(explanation, parameter="stream_options")


def _require_neutral(
    part: RequestPart, unserved: Mapping[str, tuple[JsonValue, ...]], *, prefix: str = ""
) -> None:
    for name, value in (part.model_extra or {}).items():
        if value is None or name not in unserved or value in unserved[name]:
            continue
        parameter = prefix + name
        message = f"{parameter} is not supported with this value"
        raise invalid(message, parameter=parameter, code="unsupported_parameter")
