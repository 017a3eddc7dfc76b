"""Reads multipart/form-data as it arrives; pure.

Fields are short and held; of the file nothing is held: its bytes come out as they go in.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

FILE_PART: Final = "file"
PARTS_MAX: Final = 16
FIELD_BYTES_MAX: Final = 4096
FORM_BYTES_MAX: Final = 256 * 1024
"""Room for all that is not the file: fields, boundaries and the headers of the parts."""
FILE_NAME_CHARACTERS_MAX: Final = 255
FILE_NAME_DEFAULT: Final = "upload"


class MalformedForm(Exception):
    """The body is not the form that was announced, or not a form that is taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldRead:
    """A field is complete."""

    name: str
    value: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FileBegun:
    """The bytes of the file come next."""

    file_name: str
    """As a name to show; whatever path it came with is gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileBytes:
    """The next bytes of the file."""

    content: bytes


FormEvent: TypeAlias = FieldRead | FileBegun | FileBytes


class FormReader:
    """Turns the chunks of one body into events; at most one part is the file."""

    def __init__(self, content_type: str) -> None:
        """Raises: MalformedForm if that is no form with a boundary."""
        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary", b"")
        if kind != b"multipart/form-data" or not boundary:
            raise MalformedForm("the content type must be multipart/form-data with a boundary")
        try:
            self._parser = MultipartParser(boundary, self._callbacks())
        except FormParserError as error:
            raise MalformedForm(str(error)) from None
        self._events: list[FormEvent] = []
        self._header: tuple[bytearray, bytearray] = (bytearray(), bytearray())
        self._disposition = b""
        self._field: tuple[str, bytearray] | None = None
        """Name and value so far of the field that is being read; None within the file."""
        self._parts = 0
        self._has_file = False
        self._is_complete = False

    def feed(self, chunk: bytes) -> Iterator[FormEvent]:
        """Yield what this chunk completes. Raises: MalformedForm."""
        try:
            self._parser.write(chunk)
        except FormParserError:
            raise MalformedForm("the body is not the form that its boundary announces") from None
        events, self._events = self._events, []
        yield from events

    def finish(self) -> None:
        """Take note of the end of the body. Raises: MalformedForm if it came too early."""
        if not self._is_complete:
            raise MalformedForm("the form breaks off before its end")

    def _callbacks(self) -> "MultipartCallbacks":
        return {
            "on_part_begin": self._begin_part,
            "on_header_field": lambda chunk, start, end: self._header[0].extend(chunk[start:end]),
            "on_header_value": lambda chunk, start, end: self._header[1].extend(chunk[start:end]),
            "on_header_end": self._end_header,
            "on_headers_finished": self._begin_content,
            "on_part_data": self._take_content,
            "on_part_end": self._end_part,
            "on_end": self._end,
        }

    def _begin_part(self) -> None:
        self._parts += 1
        if self._parts > PARTS_MAX:
            raise MalformedForm(f"the form has more than {PARTS_MAX} parts")
        self._disposition = b""

    def _end_header(self) -> None:
        name, value = self._header
        if name.lower() == b"content-disposition":
            self._disposition = bytes(value)
        self._header = (bytearray(), bytearray())

    def _begin_content(self) -> None:
        _, options = parse_options_header(self._disposition.decode("latin-1"))
        name = options.get(b"name", b"").decode(errors="replace")
        if name != FILE_PART:
            self._field = (name, bytearray())
            return
        if self._has_file:
            raise MalformedForm("the form has more than one file")
        self._has_file, self._field = True, None
        sent_name = options.get(b"filename", b"").decode(errors="replace")
        self._events.append(FileBegun(file_name=shown_name(sent_name)))

    def _take_content(self, chunk: bytes, start: int, end: int) -> None:
        if self._field is None:
            self._events.append(FileBytes(content=chunk[start:end]))
            return
        value = self._field[1]
        value += chunk[start:end]
        if len(value) > FIELD_BYTES_MAX:
            raise MalformedForm(f"a field is longer than {FIELD_BYTES_MAX} bytes")

    def _end_part(self) -> None:
        if self._field is not None:
            name, value = self._field
            self._events.append(FieldRead(name=name, value=value.decode(errors="replace")))

    def _end(self) -> None:
        self._is_complete = True


def shown_name(sent_name: str) -> str:
    """Return the last part of a name, without what a terminal or a header would act on."""
    last = sent_name.replace("\\", "/").rpartition("/")[2]
    printable = "".join(character for character in last if character.isprintable()).strip()
    return printable[:FILE_NAME_CHARACTERS_MAX] or FILE_NAME_DEFAULT
