"""A form is read the same however it is cut into chunks, and never past its bounds."""

import pytest

from services.http_gateway.batches.multipart import (
    FIELD_BYTES_MAX,
    PARTS_MAX,
    FieldRead,
    FileBegun,
    FileBytes,
    FormReader,
    MalformedForm,
    shown_name,
)

TYPE = "multipart/form-data; boundary=edge"
CONTENT = b'{"a": 1}\r\n--edg\r\n--edge-not\r\n\x00\xff\r\n'


def part(name: str, content: bytes, *, file_name: str | None = None) -> bytes:
    shown = "" if file_name is None else f'; filename="{file_name}"'
    head = f'--edge\r\nContent-Disposition: form-data; name="{name}"{shown}\r\n\r\n'
    return head.encode() + content + b"\r\n"


END = b"--edge--\r\n"
GOOD = part("purpose", b"batch") + part("file", CONTENT, file_name="a.jsonl") + END


def read(body: bytes, *, chunk_bytes: int = 65_536) -> tuple[dict[str, str], str | None, bytes]:
    reader = FormReader(TYPE)
    fields: dict[str, str] = {}
    file_name, content = None, b""
    for start in range(0, len(body), chunk_bytes):
        for event in reader.feed(body[start : start + chunk_bytes]):
            match event:
                case FieldRead():
                    fields[event.name] = event.value
                case FileBegun():
                    file_name = event.file_name
                case FileBytes():
                    content += event.content
    reader.finish()
    return fields, file_name, content


@pytest.mark.parametrize("chunk_bytes", [1, 2, 3, 7, 16, 64, 65_536])
def test_a_form_is_the_same_however_it_is_cut(chunk_bytes: int) -> None:
    assert read(GOOD, chunk_bytes=chunk_bytes) == ({"purpose": "batch"}, "a.jsonl", CONTENT)


def test_the_file_may_come_before_the_fields_and_may_be_empty() -> None:
    body = part("file", b"", file_name="a") + part("purpose", b"batch") + END
    assert read(body) == ({"purpose": "batch"}, "a", b"")


@pytest.mark.parametrize("length", range(len(GOOD) - len(END) + 2))
def test_a_form_that_breaks_off_is_refused_wherever(length: int) -> None:
    with pytest.raises(MalformedForm):
        read(GOOD[:length])


def test_a_second_file_is_refused() -> None:
    with pytest.raises(MalformedForm, match="more than one file"):
        read(part("file", b"x") + part("file", b"y") + END)


@pytest.mark.parametrize(("parts", "is_taken"), [(PARTS_MAX, True), (PARTS_MAX + 1, False)])
def test_parts_have_a_bound(parts: int, *, is_taken: bool) -> None:
    body = b"".join(part(f"f{n}", b"") for n in range(parts)) + END
    if is_taken:
        assert len(read(body)[0]) == parts
        return
    with pytest.raises(MalformedForm, match="parts"):
        read(body)


def test_a_field_has_a_bound() -> None:
    assert read(part("a", b"x" * FIELD_BYTES_MAX) + END)[0]["a"] == "x" * FIELD_BYTES_MAX
    with pytest.raises(MalformedForm, match="longer"):
        read(part("a", b"x" * (FIELD_BYTES_MAX + 1)) + END)


@pytest.mark.parametrize(
    "head",
    [b"x: " + b"y" * 100_000, b"\r\n".join(b"h%d: x" % n for n in range(100)), b"no colon"],
)
def test_the_headers_of_a_part_have_bounds(head: bytes) -> None:
    with pytest.raises(MalformedForm):
        read(b"--edge\r\n" + head + b"\r\n\r\nx\r\n" + END)


@pytest.mark.parametrize(
    "content_type",
    ["", "text/plain", "multipart/form-data", "multipart/form-data; boundary=", "a;" * 1000],
)
def test_what_is_no_form_is_refused_before_it_is_read(content_type: str) -> None:
    with pytest.raises(MalformedForm, match="multipart/form-data"):
        FormReader(content_type)


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        ("a.jsonl", "a.jsonl"),
        ("/etc/passwd", "passwd"),
        ("..\\..\\a", "a"),
        ("a\r\nset-cookie: x", "aset-cookie: x"),
        ("\x1b[31mred", "[31mred"),
        ("", "upload"),
        ("  ", "upload"),
    ],
)
def test_a_name_is_what_may_be_shown(sent: str, shown: str) -> None:
    assert shown_name(sent) == shown
