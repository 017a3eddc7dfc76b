"""/v1/chat/completions: its requests as SubmitRequest, its answers as chunks or one object."""

from collections.abc import Sequence
from typing import Final

from pydantic import JsonValue

from libs.client.answers import Usage
from libs.contracts.online import ChatMessage, FinishReason, ResponseFormat, SubmitRequest
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
from libs.openai_api.forced_tools import ForcedTools, ToolCall, forced_tools
from libs.openai_api.logprobs import chat_logprobs
from libs.openai_api.schemas import ChatRequest, Message

PROMPT_PARAMETER: Final = "messages"
ANSWER_ID_PREFIX: Final = "chatcmpl-"


def chat_submission(
    request: ChatRequest, *, request_id: str, expires_after_ms: int
) -> SubmitRequest:
    """Return what to publish for this request. Raises: ApiError that names the field."""
    return submission_of(
        request,
        request_id=request_id,
        expires_after_ms=expires_after_ms,
        max_tokens=request.max_completion_tokens or request.max_tokens,
        logprobs=(request.top_logprobs or 0) if request.logprobs else None,
        messages=chat_messages(request.messages),
        tools=() if request.tool_choice == "none" else tuple(request.tools or ()),
        response_format=_response_format(request),
    )


def _response_format(request: ChatRequest) -> ResponseFormat | None:
    tools = forced_tools(request.tools, request.tool_choice)
    if tools is None:
        return request.response_format
    if request.response_format is not None and request.response_format.type != "text":
        raise invalid("response_format does not go with a forced tool", parameter="tool_choice")
    return ResponseFormat(type="json_schema", json_schema={"schema": tools.schema()})


def chat_messages(messages: Sequence[Message]) -> tuple[ChatMessage, ...]:
    """Return the messages with their parts joined. Raises: ApiError for what is not text."""
    return tuple(
        ChatMessage(
            role=message.role,
            content=_text(message, index),
            name=message.name,
            tool_calls=tuple(message.tool_calls or ()),
            tool_call_id=message.tool_call_id,
        )
        for index, message in enumerate(messages)
    )


class ChatForm:
    """An AnswerForm of chat completions; `choices` of them answer one prompt."""

    def __init__(
        self,
        head: AnswerHead,
        *,
        choices: int,
        shown: Shown,
        prompt: Prompt,
        tools: ForcedTools | None = None,
    ) -> None:
        """With `tools`, each choice calls one of them, and its text is the call."""
        self._tools = tools
        self._texts: dict[int, list[str]] = {}
        """Of each choice so far, where its call is shown at its end."""
        self._head = head
        self._choices = choices
        self._shown = shown
        self._prompt = prompt

    def openings(self) -> Sequence[JsonObject]:
        """See AnswerForm.openings: the role comes first, once for each choice."""
        return [
            self._with_prompt(self._chunk(index, self._first_delta(index)))
            for index in range(self._choices)
        ]

    def piece(self, piece: Piece) -> JsonObject | None:
        """See AnswerForm.piece."""
        text = piece.text
        if not text and not self._shown.logprobs and not self._shown.token_ids:
            return None
        return self._chunk(piece.choice_index, self._next_delta(piece), piece=piece)

    def ending(self, ended: Ended) -> JsonObject:
        """See AnswerForm.ending."""
        index = ended.choice_index
        text = "".join(self._texts.get(index, ()))
        delta: dict[str, JsonValue] = {}
        if text:
            call = self._call(index, text)
            delta = {"content": text} if call is None else {"tool_calls": [{"index": 0, **call}]}
        return self._chunk(index, delta, finish_reason=self._finish_reason(ended))

    def usage_only(self) -> JsonObject:
        """See AnswerForm.usage_only."""
        return self._head.above([], kind="chat.completion.chunk")

    def whole(self, choices: Sequence[tuple[Piece, Ended]], *, usage: Usage) -> JsonObject:
        """See AnswerForm.whole."""
        shown: list[JsonValue] = [
            {
                "index": piece.choice_index,
                "message": self._message(piece),
                "finish_reason": self._finish_reason(ended),
                **self._beside(piece),
            }
            for piece, ended in choices
        ]
        answer = self._head.above(shown, kind="chat.completion")
        return self._with_prompt({**answer, "usage": dict(usage_object(usage))})

    def _first_delta(self, index: int) -> dict[str, JsonValue]:
        if self._tools is None or self._tools.only_name is None:
            return {"role": "assistant", "content": None if self._tools else ""}
        opening = ToolCall(name=self._tools.only_name, arguments="").shown(self._call_id(index))
        call: dict[str, JsonValue] = {"index": 0, **opening}
        return {"role": "assistant", "content": None, "tool_calls": [call]}

    def _next_delta(self, piece: Piece) -> dict[str, JsonValue]:
        if self._tools is None:
            return {"content": piece.text}
        if self._tools.only_name is None:
            self._texts.setdefault(piece.choice_index, []).append(piece.text)
            return {}
        return {"tool_calls": [{"index": 0, "function": {"arguments": piece.text}}]}

    def _message(self, piece: Piece) -> dict[str, JsonValue]:
        call = self._call(piece.choice_index, piece.text)
        shown: dict[str, JsonValue] = {"content": piece.text}
        if call is not None:
            shown = {"content": None, "tool_calls": [call]}
        return {"role": "assistant", **shown, "refusal": None}

    def _call(self, index: int, text: str) -> dict[str, JsonValue] | None:
        """Return the call that a choice's whole text is, if it is one."""
        call = None if self._tools is None else self._tools.call(text)
        return None if call is None else call.shown(self._call_id(index))

    def _call_id(self, index: int) -> str:
        return f"call_{self._head.answer_id.removeprefix(ANSWER_ID_PREFIX)}_{index}"

    def _finish_reason(self, ended: Ended) -> str:
        if self._tools is not None and ended.finish_reason is FinishReason.STOP:
            return "tool_calls"
        return str(ended.finish_reason)

    def _chunk(
        self,
        index: int,
        delta: dict[str, JsonValue],
        *,
        piece: Piece | None = None,
        finish_reason: str | None = None,
    ) -> JsonObject:
        choice: dict[str, JsonValue] = {
            "index": index,
            "delta": delta,
            "finish_reason": finish_reason,
            **self._beside(piece),
        }
        return self._head.above([choice], kind="chat.completion.chunk")

    def _beside(self, piece: Piece | None) -> dict[str, JsonValue]:
        beside: dict[str, JsonValue] = {"logprobs": None}
        if piece is not None and self._shown.logprobs:
            beside["logprobs"] = chat_logprobs(piece.tokens)
        if piece is not None and self._shown.token_ids:
            beside["token_ids"] = [token.token_id for token in piece.tokens]
        return beside

    def _with_prompt(self, content: JsonObject) -> JsonObject:
        if not self._shown.token_ids:
            return content
        return {**content, "prompt_token_ids": list(self._prompt.token_ids)}


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
