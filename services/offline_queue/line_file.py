"""The file of a batch, line by line: cut, read and grouped into parts; pure.

The splitter and the grouping are functions of the bytes alone, so that whoever reads the file again
finds the same lines under the same numbers in the same parts. Lines of white space count as lines
and ask for nothing. Source of the form: OpenAI's Batch API, "The request input object".
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from libs.contracts.batches import (
    CUSTOM_ID_CHARACTERS_MAX,
    LINE_BYTES_MAX,
    LineError,
)
from libs.kernel.units import MIB
from libs.openai_api.chat import chat_submission
from libs.openai_api.completions import completion_submissions
from libs.openai_api.errors import ApiError
from libs.openai_api.schemas import ChatRequest, CompletionRequest, parse

CHAT: Final = "/v1/chat/completions"
PART_LINES: Final = 64
PART_BYTES: Final = 1 * MIB
"""A part ends with the line that reaches one of the two. Changing either changes the parts of
batches under way: only while there are none."""
BYTES_PER_TOKEN: Final = 4
"""Of a prompt, for predictions only."""
ANSWER_TOKENS_ASSUMED: Final = 256
PREFIX_CHARACTERS: Final = 1024
"""Of a custom_id: among 50,000 two equal digests have odds of 1 to 10^19."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RawLine:
    """One line without its end, and where it lies."""

    number: int
    first_byte: int
    size_bytes: int
    """With its end, as it counts in the file."""
    content: bytes
    is_too_long: bool = False
    """The content is then left out."""

    @property
    def is_blank(self) -> bool:
        """Whether it asks for nothing."""
        return not self.is_too_long and not self.content.strip()


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchLine:
    """A line that can be asked."""

    number: int
    custom_id: str
    request: ChatRequest | CompletionRequest

    @property
    def prompt_tokens_predicted(self) -> int:
        """Length of the prompt, by its bytes."""
        return max(1, len(_prompt_text(self.request).encode()) // BYTES_PER_TOKEN)

    @property
    def answer_tokens_predicted(self) -> int:
        """What the answer may take, all choices together."""
        request = self.request
        limit = request.max_tokens
        if isinstance(request, ChatRequest):
            limit = request.max_completion_tokens or limit
        return min(ANSWER_TOKENS_ASSUMED, limit or ANSWER_TOKENS_ASSUMED) * (request.n or 1)

    @property
    def prefix(self) -> str:
        """How the prompt begins: lines in this order meet each other's cached blocks."""
        return _prompt_text(self.request)[:PREFIX_CHARACTERS]


class LineSplitter:
    """Cuts a stream of bytes into lines; holds no more than one of them."""

    def __init__(self, *, first_line: int = 1, first_byte: int = 0) -> None:
        self._number = first_line
        self._first_byte = first_byte
        self._held = bytearray()
        self._dropped_bytes = 0
        """Of a line that is too long, what was let go already."""

    def feed(self, content: bytes) -> Iterator[RawLine]:
        """Yield the lines that end within these bytes."""
        pieces = content.split(b"\n")
        for piece in pieces[:-1]:
            self._hold(piece)
            yield self._cut(ending=1)
        self._hold(pieces[-1])

    def finish(self) -> Iterator[RawLine]:
        """Yield the last line, if the file does not end with a line's end."""
        if self._held or self._dropped_bytes:
            yield self._cut(ending=0)

    def _hold(self, piece: bytes) -> None:
        self._held += piece
        if len(self._held) > LINE_BYTES_MAX:
            self._dropped_bytes += len(self._held)
            self._held.clear()

    def _cut(self, *, ending: int) -> RawLine:
        is_too_long = self._dropped_bytes > 0
        size_bytes = self._dropped_bytes + len(self._held) + ending
        line = RawLine(
            number=self._number,
            first_byte=self._first_byte,
            size_bytes=size_bytes,
            content=b"" if is_too_long else bytes(self._held),
            is_too_long=is_too_long,
        )
        self._number += 1
        self._first_byte += size_bytes
        self._held.clear()
        self._dropped_bytes = 0
        return line


@dataclass(frozen=True, slots=True, kw_only=True)
class PartRange:
    """Consecutive lines, as BatchPart names them."""

    part: int
    first_line: int
    first_byte: int
    size_bytes: int


class PartGrouping:
    """Says which part a line belongs to; lines come in order."""

    def __init__(self) -> None:
        self._part = 0
        self._lines = 0
        self._bytes = 0
        self._first: RawLine | None = None

    def add(self, line: RawLine) -> PartRange | None:
        """Take the next line; return the part that it completes."""
        self._first = self._first or line
        self._lines += 1
        self._bytes += line.size_bytes
        if self._lines < PART_LINES and self._bytes < PART_BYTES:
            return None
        return self.finish()

    def finish(self) -> PartRange | None:
        """Return the part that is not complete, if there is one."""
        if self._first is None:
            return None
        part = PartRange(
            part=self._part,
            first_line=self._first.number,
            first_byte=self._first.first_byte,
            size_bytes=self._bytes,
        )
        self._part += 1
        self._lines = self._bytes = 0
        self._first = None
        return part


def read_line(raw: RawLine, *, endpoint: str) -> BatchLine | LineError:
    """Return the request on this line, or why it cannot be asked."""
    try:
        return _read(raw, endpoint=endpoint)
    except _Refusal as refusal:
        return LineError(
            code=refusal.code,
            message=refusal.message[:1024],
            line=raw.number,
            parameter=None if refusal.parameter is None else refusal.parameter[:256],
        )


class _Refusal(Exception):
    def __init__(self, code: str, message: str, parameter: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.parameter = parameter


def _read(raw: RawLine, *, endpoint: str) -> BatchLine:
    if raw.is_too_long:
        raise _Refusal("line_too_long", f"a line has at most {LINE_BYTES_MAX} bytes")
    try:
        envelope = json.loads(raw.content)
    except (ValueError, RecursionError):
        raise _Refusal("invalid_json_line", "the line is not valid JSON") from None
    if not isinstance(envelope, dict):
        raise _Refusal("invalid_json_line", "the line is not a JSON object")
    custom_id = envelope.get("custom_id")
    if not isinstance(custom_id, str) or not 1 <= len(custom_id) <= CUSTOM_ID_CHARACTERS_MAX:
        message = f"a string of 1 to {CUSTOM_ID_CHARACTERS_MAX} characters is needed"
        raise _Refusal("missing_required_parameter", message, "custom_id")
    if not _is_text(custom_id):
        raise _Refusal("invalid_custom_id", "it is not valid Unicode", "custom_id")
    if envelope.get("method", "POST") != "POST":
        raise _Refusal("invalid_method", "the method must be POST", "method")
    if envelope.get("url") != endpoint:
        raise _Refusal("mismatched_url", "the url must be the endpoint of the batch", "url")
    body = envelope.get("body")
    if not isinstance(body, dict):
        raise _Refusal("missing_required_parameter", "an object is needed", "body")
    return BatchLine(
        number=raw.number, custom_id=custom_id, request=_request(body, endpoint=endpoint)
    )


def _request(body: dict[str, Any], *, endpoint: str) -> ChatRequest | CompletionRequest:
    """Return the body as a request that the endpoint would take."""
    content = json.dumps(body).encode()
    try:
        request: ChatRequest | CompletionRequest
        if endpoint == CHAT:
            request = parse(ChatRequest, content)
            chat_submission(request, request_id="judged", expires_after_ms=1)
        else:
            request = parse(CompletionRequest, content)
            completion_submissions(request, request_id="judged", expires_after_ms=1)
    except ApiError as error:
        parameter = error.answer.parameter
        where = "body" if parameter is None else f"body.{parameter}"
        raise _Refusal(error.answer.code or "invalid_request", str(error), where) from None
    if request.stream:
        raise _Refusal("invalid_request", "a batch does not stream", "body.stream")
    return request


def _prompt_text(request: ChatRequest | CompletionRequest) -> str:
    if isinstance(request, ChatRequest):
        return "\n".join(f"{m.role}: {m.content}" for m in request.messages)
    prompt = request.prompt
    return prompt if isinstance(prompt, str) else " ".join(map(str, prompt))


def _is_text(value: str) -> bool:
    """Whether it can be written as UTF-8: JSON can spell halves of a character."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
