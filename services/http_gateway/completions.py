"""/v1/completions: its requests as SubmitRequest, its answers as chunks or one object."""

from typing import Final

from pydantic import JsonValue

from libs.client.token_stream import Usage
from libs.contracts.online import FinishReason, SubmitRequest
from services.http_gateway.answer_form import (
    AnswerHead,
    JsonObject,
    submission_of,
    usage_object,
)
from services.http_gateway.errors import invalid
from services.http_gateway.schemas import CompletionRequest

PROMPT_PARAMETER: Final = "prompt"
ANSWER_ID_PREFIX: Final = "cmpl-"
DEFAULT_MAX_TOKENS: Final = 16
"""OpenAI's default for this endpoint, which clients count on."""


def completion_submission(
    request: CompletionRequest, *, request_id: str, expires_after_ms: int
) -> SubmitRequest:
    """Return what to publish for this request. Raises: ApiError that names the field."""
    prompt = _the_prompt(request)
    if not prompt:
        raise invalid("prompt is empty", parameter="prompt")
    return submission_of(
        request,
        request_id=request_id,
        expires_after_ms=expires_after_ms,
        max_tokens=request.max_tokens or DEFAULT_MAX_TOKENS,
        prompt=prompt if isinstance(prompt, str) else None,
        prompt_token_ids=None if isinstance(prompt, str) else tuple(prompt),
    )


def _the_prompt(request: CompletionRequest) -> str | list[int]:
    prompt = request.prompt
    if isinstance(prompt, str):
        return prompt
    token_ids = [part for part in prompt if isinstance(part, int)]
    if token_ids:
        return token_ids
    prompts = [part for part in prompt if not isinstance(part, int)]
    if not prompts:
        raise invalid("prompt is empty", parameter="prompt")
    if len(prompts) > 1:
        raise invalid("prompt: one prompt per request is supported", parameter="prompt")
    return prompts[0]


class CompletionForm:
    """An AnswerForm of text completions."""

    def __init__(self, head: AnswerHead) -> None:
        self._head = head

    def opening(self) -> None:
        """See AnswerForm.opening: text completions have none."""

    def piece(self, text: str) -> JsonObject:
        """See AnswerForm.piece."""
        return self._object([_choice(text, None)])

    def ending(self, finish_reason: FinishReason) -> JsonObject:
        """See AnswerForm.ending."""
        return self._object([_choice("", finish_reason)])

    def usage_only(self) -> JsonObject:
        """See AnswerForm.usage_only."""
        return self._object([])

    def whole(self, text: str, *, finish_reason: FinishReason, usage: Usage) -> JsonObject:
        """See AnswerForm.whole."""
        return {
            **self._object([_choice(text, finish_reason)]),
            "usage": dict(usage_object(usage)),
        }

    def _object(self, choices: list[JsonValue]) -> JsonObject:
        return {
            "id": self._head.answer_id,
            "object": "text_completion",
            "created": self._head.created_at_unix_s,
            "model": self._head.model,
            "choices": choices,
        }


def _choice(text: str, finish_reason: FinishReason | None) -> JsonValue:
    return {
        "index": 0,
        "text": text,
        "logprobs": None,
        "finish_reason": finish_reason and str(finish_reason),
    }
