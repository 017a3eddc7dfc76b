"""What chat and completions share: how a request becomes a message, an answer becomes JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from pydantic import JsonValue, ValidationError

from libs.client.answers import Token, Usage
from libs.contracts.online import (
    ChatMessage,
    FinishReason,
    ResponseFormat,
    SamplingParameters,
    SubmitRequest,
)
from libs.openai_api.errors import from_validation
from libs.openai_api.schemas import ChatRequest, CompletionRequest

JsonObject: TypeAlias = Mapping[str, JsonValue]


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerHead:
    """What every object of one answer repeats."""

    answer_id: str
    created_at_unix_s: int
    model: str
    """As the caller wrote it."""

    def above(self, choices: Sequence[JsonValue], *, kind: str) -> JsonObject:
        """Return an object of this kind with these choices."""
        return {
            "id": self.answer_id,
            "object": kind,
            "created": self.created_at_unix_s,
            "model": self.model,
            "choices": list(choices),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What an answer shows beside its text."""

    logprobs: bool = False
    token_ids: bool = False
    answer: bool = True
    """False: of the answer nothing is shown, only what belongs to the prompt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """What an answer repeats of one prompt, if anything."""

    echo: str = ""
    is_scored: bool = False
    """Whether the first token brings log probabilities of the prompt, which stand beside the
    echo."""
    token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """The next tokens of one choice."""

    choice_index: int
    tokens: Sequence[Token]
    characters_before: int
    """Length of the choice's text so far."""

    @property
    def is_first(self) -> bool:
        """Whether the choice's first token is among these."""
        return bool(self.tokens) and self.tokens[0].index == 0

    @property
    def text(self) -> str:
        """The text that the tokens add."""
        return "".join(token.text for token in self.tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """One choice is complete."""

    choice_index: int
    finish_reason: FinishReason


class AnswerForm(Protocol):
    """The shape of an endpoint's answers; pure."""

    def openings(self) -> Sequence[JsonObject]:
        """Return the chunks before the first text."""

    def piece(self, piece: Piece) -> JsonObject | None:
        """Return a chunk with more text; None if these tokens show nothing."""

    def ending(self, ended: Ended) -> JsonObject:
        """Return the chunk that says why a choice ends; comes once for each."""

    def usage_only(self) -> JsonObject:
        """Return a chunk without choices, to carry the usage."""

    def whole(self, choices: Sequence[tuple[Piece, Ended]], *, usage: Usage) -> JsonObject:
        """Return the answer in one object; each choice with all of its tokens, in order."""


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
    logprobs: int | None,
    prompt_logprobs: bool = False,
    prompt: str | None = None,
    messages: tuple[ChatMessage, ...] | None = None,
    prompt_token_ids: tuple[int, ...] | None = None,
    tools: tuple[dict[str, JsonValue], ...] = (),
    response_format: ResponseFormat | None = None,
) -> SubmitRequest:
    """Return the message that asks for this. Raises: ApiError for what the contract refuses."""
    stop = request.stop
    sampling: dict[str, Any] = {
        "temperature": request.temperature,
        "top_p": request.top_p,
        "top_k": request.top_k if request.top_k is not None and request.top_k > 0 else None,
        "min_p": request.min_p,
        "seed": request.seed,
        "repetition_penalty": request.repetition_penalty,
        "presence_penalty": request.presence_penalty,
        "frequency_penalty": request.frequency_penalty,
        "logit_bias": request.logit_bias,
        "min_tokens": request.min_tokens,
        "stop_token_ids": request.stop_token_ids,
        "logprobs": logprobs,
        "prompt_logprobs": prompt_logprobs,
    }
    given = {name: value for name, value in sampling.items() if value is not None}
    try:
        return SubmitRequest(
            request_id=request_id,
            prompt=prompt,
            messages=messages,
            prompt_token_ids=prompt_token_ids,
            tools=tools,
            max_tokens=max_tokens,
            sampling=SamplingParameters(**given),
            stop=(stop,) if isinstance(stop, str) else tuple(stop or ()),
            ignore_eos=bool(request.ignore_eos),
            response_format=response_format,
            priority=request.priority or 0,
            expires_after_ms=expires_after_ms,
        )
    except ValidationError as error:
        raise from_validation(error) from None
