"""/v1/completions: its requests as SubmitRequest, its answers as chunks or one object."""

from collections.abc import Sequence
from typing import Final

from pydantic import JsonValue

from libs.client.answers import Usage
from libs.contracts.online import FinishReason, SubmitRequest
from libs.openai_api.answer_form import (
    AnswerHead,
    Ended,
    JsonObject,
    Piece,
    Prompt,
    Shown,
    submission_of,
    usage_object,
)
from libs.openai_api.errors import invalid
from libs.openai_api.logprobs import completion_logprobs
from libs.openai_api.schemas import CHOICES_MAX, CompletionRequest

PROMPT_PARAMETER: Final = "prompt"
ANSWER_ID_PREFIX: Final = "cmpl-"
DEFAULT_MAX_TOKENS: Final = 16
"""OpenAI's default for this endpoint, which clients count on."""


def completion_submissions(
    request: CompletionRequest, *, request_id: str, expires_after_ms: int
) -> list[SubmitRequest]:
    """Return what to publish for each prompt. Raises: ApiError that names the field."""
    prompts = _prompts(request)
    if not prompts or not all(prompts):
        raise invalid("prompt is empty", parameter="prompt")
    if len(prompts) * (request.n or 1) > CHOICES_MAX:
        message = f"prompt: at most {CHOICES_MAX} answers per request, prompts times n"
        raise invalid(message, parameter="prompt")
    max_tokens = request.max_tokens
    if max_tokens is None:
        max_tokens = max(DEFAULT_MAX_TOKENS, request.min_tokens or 0)
    return [
        submission_of(
            request,
            request_id=request_id,
            expires_after_ms=expires_after_ms,
            # The prompt's scores come with the first token, which is not shown if none is wanted.
            max_tokens=max(1, max_tokens),
            logprobs=request.logprobs,
            prompt_logprobs=is_scored(request),
            response_format=request.response_format,
            prompt=prompt if isinstance(prompt, str) else None,
            prompt_token_ids=None if isinstance(prompt, str) else tuple(prompt),
        )
        for prompt in prompts
    ]


def is_scored(request: CompletionRequest) -> bool:
    """Whether the prompt's log probabilities are wanted."""
    return bool(request.echo) and request.logprobs is not None


def _prompts(request: CompletionRequest) -> Sequence[str | list[int]]:
    prompt = request.prompt
    if isinstance(prompt, str):
        return [prompt]
    token_ids = [part for part in prompt if isinstance(part, int)]
    if token_ids:
        return [token_ids]
    return [part for part in prompt if not isinstance(part, int)]


class CompletionForm:
    """An AnswerForm of text completions; each choice has its prompt."""

    def __init__(self, head: AnswerHead, *, prompts: Sequence[Prompt], shown: Shown) -> None:
        self._head = head
        self._prompts = prompts
        self._shown = shown

    def openings(self) -> Sequence[JsonObject]:
        """See AnswerForm.openings: what is repeated of the prompts."""
        return [
            self._object([self._choice(Piece(choice_index=index, tokens=(), characters_before=0))])
            for index, prompt in enumerate(self._prompts)
            if (prompt.echo or self._shown.token_ids) and not prompt.is_scored
        ]

    def piece(self, piece: Piece) -> JsonObject | None:
        """See AnswerForm.piece: a prompt that is scored comes with the first one."""
        if self._prompts[piece.choice_index].is_scored and piece.is_first:
            return self._object([self._choice(piece)])
        if not self._shown.answer:
            return None
        text = piece.text
        if not text and not self._shown.logprobs and not self._shown.token_ids:
            return None
        before = piece.characters_before + len(self._prompts[piece.choice_index].echo)
        choice: dict[str, JsonValue] = {
            "index": piece.choice_index,
            "text": text,
            "finish_reason": None,
            **self._beside(piece, text_offset=before),
        }
        return self._object([choice])

    def ending(self, ended: Ended) -> JsonObject:
        """See AnswerForm.ending."""
        choice: dict[str, JsonValue] = {
            "index": ended.choice_index,
            "text": "",
            "logprobs": None,
            "finish_reason": self._finish_reason(ended),
        }
        return self._object([choice])

    def usage_only(self) -> JsonObject:
        """See AnswerForm.usage_only."""
        return self._object([])

    def whole(self, choices: Sequence[tuple[Piece, Ended]], *, usage: Usage) -> JsonObject:
        """See AnswerForm.whole."""
        shown: list[JsonValue] = [
            {**self._choice(piece), "finish_reason": self._finish_reason(ended)}
            for piece, ended in choices
        ]
        return {**self._object(shown), "usage": dict(usage_object(usage))}

    def _choice(self, piece: Piece) -> dict[str, JsonValue]:
        """Return a choice from its beginning: the prompt first."""
        prompt = self._prompts[piece.choice_index]
        choice: dict[str, JsonValue] = {
            "index": piece.choice_index,
            "text": prompt.echo + (piece.text if self._shown.answer else ""),
            "finish_reason": None,
            **self._beside(piece, text_offset=len(prompt.echo)),
        }
        if self._shown.token_ids:
            choice["prompt_token_ids"] = list(prompt.token_ids)
        return choice

    def _beside(self, piece: Piece, *, text_offset: int) -> dict[str, JsonValue]:
        beside: dict[str, JsonValue] = {"logprobs": None}
        if self._shown.logprobs and piece.tokens:
            beside["logprobs"] = completion_logprobs(
                piece.tokens, text_offset=text_offset, shows_answer=self._shown.answer
            )
        if self._shown.token_ids:
            shown = piece.tokens if self._shown.answer else ()
            beside["token_ids"] = [token.token_id for token in shown]
        return beside

    def _finish_reason(self, ended: Ended) -> str:
        return str(ended.finish_reason if self._shown.answer else FinishReason.LENGTH)

    def _object(self, choices: list[JsonValue]) -> JsonObject:
        return self._head.above(choices, kind="text_completion")
