"""OpenAI's requests as far as they are served: unknown fields are accepted, nulls mean absent.

Fields that exist elsewhere, are not served here and would change the answer if they were ignored
are refused by name: see `require_served`.
"""

from collections.abc import Mapping
from typing import Annotated, Final, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from libs.contracts.online import (
    INT64_MAX,
    LOGIT_BIAS_ENTRIES_MAX,
    MAX_TOKENS_LIMIT,
    STOP_STRINGS_MAX,
    STOP_TOKEN_IDS_MAX,
    TEMPERATURE_MAX,
    TOOLS_MAX,
    TOP_K_MAX,
    TOP_LOGPROBS_MAX,
    ResponseFormat,
    TokenId,
)
from libs.openai_api.errors import ApiError, from_validation, invalid

MODEL_NAME_CHARACTERS_MAX: Final = 256
UNSUPPORTED: Final = "unsupported_parameter"
ANSWERS_PER_PROMPT_MAX: Final = 16
CHOICES_MAX: Final = 128
"""Prompts times n: each choice is a session of its own."""


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
    n: int | None = Field(default=None, ge=1, le=ANSWERS_PER_PROMPT_MAX)
    min_p: float | None = Field(default=None, ge=0.0, le=1.0)
    repetition_penalty: float | None = Field(default=None, gt=0.0, le=2.0)
    presence_penalty: float | None = Field(default=None, ge=-2.0, le=2.0)
    frequency_penalty: float | None = Field(default=None, ge=-2.0, le=2.0)
    logit_bias: dict[TokenId, Annotated[float, Field(ge=-100.0, le=100.0)]] | None = Field(
        default=None, max_length=LOGIT_BIAS_ENTRIES_MAX
    )
    min_tokens: int | None = Field(default=None, ge=0, le=MAX_TOKENS_LIMIT)
    stop_token_ids: list[TokenId] | None = Field(default=None, max_length=STOP_TOKEN_IDS_MAX)
    response_format: ResponseFormat | None = None
    """Served for completions as well."""
    return_token_ids: bool | None = None
    """Our own: show the token ids of prompt and answer."""
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
    name: str | None = Field(default=None, max_length=64)
    tool_calls: list[dict[str, JsonValue]] | None = Field(default=None, max_length=TOOLS_MAX)
    """Of an earlier answer; the model's template shows them."""
    tool_call_id: str | None = Field(default=None, max_length=256)


class ChatRequest(GenerationRequest):
    """POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=MAX_TOKENS_LIMIT)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=TOP_LOGPROBS_MAX)
    tools: list[dict[str, JsonValue]] | None = Field(default=None, max_length=TOOLS_MAX)
    """Shown to the model by its template; the answer calls one where `tool_choice` forces it, and
    stays text otherwise."""
    tool_choice: JsonValue = None


class CompletionRequest(GenerationRequest):
    """POST /v1/completions."""

    prompt: str | list[int] | list[str] | list[list[int]]
    max_tokens: int | None = Field(default=None, ge=0, le=MAX_TOKENS_LIMIT)
    """0 only with echo: the prompt is scored and nothing answered."""
    logprobs: int | None = Field(default=None, ge=0, le=TOP_LOGPROBS_MAX)
    echo: bool | None = None
    best_of: int | None = None


class TokenizeRequest(RequestPart):
    """POST /tokenize: a prompt, or messages as the model's template renders them."""

    model: str | None = Field(default=None, max_length=MODEL_NAME_CHARACTERS_MAX)
    prompt: str | None = None
    messages: list[Message] | None = None
    tools: list[dict[str, JsonValue]] | None = Field(default=None, max_length=TOOLS_MAX)
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    return_token_strs: bool | None = None


class DetokenizeRequest(RequestPart):
    """POST /detokenize."""

    model: str | None = Field(default=None, max_length=MODEL_NAME_CHARACTERS_MAX)
    tokens: list[TokenId]


RequestT = TypeVar("RequestT", ChatRequest, CompletionRequest, TokenizeRequest, DetokenizeRequest)

# Field -> values that ask for nothing beyond what is served. Null always does.
_UNSERVED: Final[Mapping[str, tuple[JsonValue, ...]]] = {
    "length_penalty": (1,),
    "use_beam_search": (False,),
    "allowed_token_ids": (),
    "bad_words": ([],),
    "prompt_logprobs": (),
    "structured_outputs": ({},),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "add_special_tokens": (),
    "skip_special_tokens": (True,),
    "include_stop_str_in_output": (False,),
    "return_tokens_as_token_ids": (False,),
    "truncate_prompt_tokens": (),
}
_UNSERVED_BY_CHAT: Final[Mapping[str, tuple[JsonValue, ...]]] = {
    **_UNSERVED,
    "echo": (False,),
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
    "suffix": ("",),
}
_UNSERVED_IN_MESSAGES: Final[Mapping[str, tuple[JsonValue, ...]]] = {
    "function_call": (),
    "audio": (),
}


def parse(shape: type[RequestT], body: bytes) -> RequestT:
    """Return the request in this body. Raises: ApiError that names the field."""
    try:
        request: RequestT = shape.model_validate_json(body)
    except ValidationError as error:
        raise from_validation(error) from None
    match request:
        case ChatRequest() | CompletionRequest():
            require_served(request)
        case TokenizeRequest():
            if (request.prompt is None) == (request.messages is None):
                raise invalid("give exactly one of prompt and messages", parameter="prompt")
        case DetokenizeRequest():
            pass
    return request


def require_served(request: ChatRequest | CompletionRequest) -> None:
    """Refuse what is not served and would change the answer. Raises: ApiError."""
    match request:
        case ChatRequest():
            _require_chat(request)
        case CompletionRequest():
            _require_completion(request)
    stop = request.stop
    if isinstance(stop, list) and len(stop) > STOP_STRINGS_MAX:
        raise invalid(f"stop: at most {STOP_STRINGS_MAX} strings", parameter="stop")
    if request.stream_options is not None and not request.stream:
        explanation = "stream_options may be given only when stream is true"
        raise invalid(explanation, parameter="stream_options")


def _require_chat(request: ChatRequest) -> None:
    _require_neutral(request, _UNSERVED_BY_CHAT)
    for index, message in enumerate(request.messages):
        _require_neutral(message, _UNSERVED_IN_MESSAGES, prefix=f"messages[{index}].")
    if request.top_logprobs and not request.logprobs:
        raise invalid("top_logprobs may be given only with logprobs", parameter="top_logprobs")
    _require_min_tokens(request.min_tokens, request.max_completion_tokens or request.max_tokens)


def _require_completion(request: CompletionRequest) -> None:
    _require_neutral(request, _UNSERVED_BY_COMPLETIONS)
    if request.best_of is not None and request.best_of != (request.n or 1):
        raise _unsupported("best_of")
    if request.max_tokens == 0 and not request.echo:
        raise invalid("max_tokens may be 0 only with echo", parameter="max_tokens")
    _require_min_tokens(request.min_tokens, request.max_tokens)


def _require_min_tokens(min_tokens: int | None, max_tokens: int | None) -> None:
    if max_tokens is not None and (min_tokens or 0) > max_tokens:
        raise invalid("min_tokens must not exceed max_tokens", parameter="min_tokens")


def _unsupported(parameter: str) -> ApiError:
    message = f"{parameter} is not supported with this value"
    return invalid(message, parameter=parameter, code=UNSUPPORTED)


def _require_neutral(
    part: RequestPart, unserved: Mapping[str, tuple[JsonValue, ...]], *, prefix: str = ""
) -> None:
    for name, value in (part.model_extra or {}).items():
        if value is None or name not in unserved or value in unserved[name]:
            continue
        raise _unsupported(prefix + name)
