"""The HTTP/1.1 parser in front of the application, with bounds on what comes before a body."""

import json
from http import HTTPStatus
from typing import ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from libs.openai_api.errors import ErrorAnswer


class BoundedHttpProtocol(HttpToolsProtocol):
    """Refuses request lines and headers over the bounds; answers broken HTTP in the envelope."""

    head_bytes_max: ClassVar[int] = 64 * 1024
    headers_max: ClassVar[int] = 128

    _head_bytes = 0
    _is_head_open = True

    def data_received(self, data: bytes) -> None:
        """Feed the parser; an unfinished head that grows past its bound ends the connection."""
        self._head_bytes = self._head_bytes + len(data) if self._is_head_open else 0
        super().data_received(data)
        if self._is_head_open and self._head_bytes > self.head_bytes_max:
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "the headers are too large")

    def on_message_begin(self) -> None:
        """Begin to count."""
        super().on_message_begin()
        self._is_head_open = True

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header, unless it is one too many."""
        if len(self.headers) >= self.headers_max:
            raise ValueError("too many headers")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Stop to count: a body has its own bound."""
        self._is_head_open = False
        self._head_bytes = 0
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Be ready for the next head on this connection."""
        super().on_message_complete()
        self._is_head_open = True
        self._head_bytes = 0

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP, or has too many headers."""
        if self._is_head_open and len(self.headers or ()) >= self.headers_max:
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "there are too many headers")
        else:
            self._refuse(HTTPStatus.BAD_REQUEST, "the request is not valid HTTP")

    def _refuse(self, status: HTTPStatus, message: str) -> None:
        if self.transport.is_closing():
            return
        body = json.dumps(ErrorAnswer(status=status, message=message).envelope()).encode()
        head = (
            f"HTTP/1.1 {status.value} {status.phrase}\r\n"
            "content-type: application/json\r\n"
            f"content-length: {len(body)}\r\n"
            "connection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()


def bounded_protocol(*, head_bytes_max: int, headers_max: int) -> type[BoundedHttpProtocol]:
    """Return the protocol class with these bounds; uvicorn instantiates it per connection."""
    bounds = {"head_bytes_max": head_bytes_max, "headers_max": headers_max}
    return type("BoundedHttpProtocol", (BoundedHttpProtocol,), bounds)
