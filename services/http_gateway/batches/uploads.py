"""One upload: the file passes through to the blob store, the fields beside it are held."""

from contextlib import aclosing
from typing import assert_never

from starlette.requests import Request

from libs.openai_api.errors import invalid
from libs.runtime.blob_store import BlobWriter
from services.http_gateway.batches.errors import file_too_large
from services.http_gateway.batches.multipart import (
    FORM_BYTES_MAX,
    FieldRead,
    FileBegun,
    FileBytes,
    FormEvent,
    FormReader,
    MalformedForm,
)
from services.http_gateway.batches.schemas import FileForm, parse_fields
from services.http_gateway.request_bodies import body_chunks


class Upload:
    """Takes one form with one file."""

    def __init__(self, writer: BlobWriter, *, bytes_max: int) -> None:
        """The file goes to the writer, which is left to the caller to commit."""
        self._writer = writer
        self._bytes_max = bytes_max
        self._fields: dict[str, str] = {}
        self._file_name: str | None = None
        self._size_bytes = 0

    async def receive(self, request: Request, *, wait_s: float) -> None:
        """Return once the whole form has arrived. Raises: ApiError, Unavailable."""
        chunks = body_chunks(request, bytes_max=self._bytes_max + FORM_BYTES_MAX, wait_s=wait_s)
        try:
            reader = FormReader(request.headers.get("content-type", ""))
            async with aclosing(chunks):
                async for chunk in chunks:
                    for event in reader.feed(chunk):
                        await self._take(event)
            reader.finish()
        except MalformedForm as error:
            raise invalid(str(error), code="invalid_form") from None

    def form(self) -> FileForm:
        """Return the fields. Raises: ApiError that names a wrong one."""
        return parse_fields(FileForm, self._fields)

    def file_name(self) -> str:
        """Return the file's name, to show. Raises: ApiError if there was no file."""
        if self._file_name is None:
            raise invalid("file: the form has no file", parameter="file")
        return self._file_name

    async def _take(self, event: FormEvent) -> None:
        match event:
            case FieldRead():
                self._fields[event.name] = event.value
            case FileBegun():
                self._file_name = event.file_name
            case FileBytes():
                self._size_bytes += len(event.content)
                if self._size_bytes > self._bytes_max:
                    raise file_too_large(self._bytes_max)
                await self._writer.write(event.content)
            case _:
                assert_never(event)
