"""/v1/chat/completions: its requests as SubmitRequest, its answers as chunks or one object."""

from typing import Final

from pydantic import JsonValue

from libs.client.token_stream import Usage
from libs.contracts.online import ChatMessage, FinishReason, SubmitRequest
from services.http_gateway.answer_form import (
    AnswerHead,
    JsonObject,
    submission_of,
    usage_object,
)
from services.http_gateway.errors import invalid
from services.http_gateway.schemas import ChatRequest, Message

PROMPT_PARAMETER: Final = "messages"
ANSWER_ID_PREFIX: Final = "chatcmpl-"


def chat_submission(
    request: ChatRequest, *, request_id: str, expires_after_ms: int
) -> SubmitRequest:
    """Return what to publish for this request. Raises: ApiError that names the field."""
    messages = tuple(_message(message, index) for index, message in enumerate(request.messages))
    return submission_of(
        request,
        request_id=request_id,
        expires_after_ms=expires_after_ms,
        max_tokens=request.max_completion_tokens or request.max_tokens,
        messages=messages,
    )


class ChatForm:
    """An AnswerForm of chat completions."""

    def __init__(self, head: AnswerHead) -> None:
        self._head = head

    def opening(self) -> JsonObject:
        """See AnswerForm.opening: the role comes first, once."""
        return self._chunk({"role": "assistant", "content": ""})

    def piece(self, text: str) -> JsonObject:
        """See AnswerForm.piece."""
        return self._chunk({"content": text})

    def ending(self, finish_reason: FinishReason) -> JsonObject:
        """See AnswerForm.ending."""
        return self._chunk({}, finish_reason)

    def usage_only(self) -> JsonObject:
        """See AnswerForm.usage_only."""
        return self._object("chat.completion.chunk", [])

    def whole(self, text: str, *, finish_reason: FinishReason, usage: Usage) -> JsonObject:
        """See AnswerForm.whole."""
        choice: dict[str, JsonValue] = {
            "index": 0,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": None,
            "finish_reason": str(finish_reason),
        }
        return {**self._object("chat.completion", [choice]), "usage": dict(usage_object(usage))}

    def _chunk(
        self, delta: dict[str, JsonValue], finish_reason: FinishReason | None = None
    ) -> JsonObject:
        choice: dict[str, JsonValue] = {
            "index": 0,
            "delta": delta,
            "logprobs": None,
            "finish_reason": finish_reason and str(finish_reason),
        }
        return self._object("chat.completion.chunk", [choice])

    def _object(self, kind: str, choices: list[JsonValue]) -> JsonObject:
        return {
            "id": self._head.answer_id,
            "object": kind,
            "created": self._head.created_at_unix_s,
            "model": self._head.model,
            "choices": choices,
        }


def _message(message: Message, index: int) -> ChatMessage:
    return ChatMessage(role=message.role, content=_text(message, index))


def _text(message: Message, index: int) -> str:
    if message.content is None or isinstance(message.content, str):
        return message.content or ""
    texts = []
    for position, part in enumerate(message.content):
        parameter = f"messages[{index}].content[{position}]"
        if part.type != "text":
            raise invalid(f"{parameter}: only text is supported", parameter=f"{parameter}.type")
        if part.text is None:
            raise invalid(f"{parameter}.text: is missing", parameter=f"{parameter}.text")
        texts.append(part.text)
    return "".join(texts)
