"""Reads the bodies of requests, within bounds of size and time."""

import asyncio
from collections.abc import AsyncGenerator
from http import HTTPStatus

from starlette.requests import Request

from libs.kernel.units import MIB
from libs.openai_api.errors import ApiError, ErrorAnswer


async def body_chunks(
    request: Request, *, bytes_max: int, wait_s: float
) -> AsyncGenerator[bytes, None]:
    """Yield the body as it arrives, until the limit is passed or `wait_s` is over.

    Raises: ApiError, ClientDisconnect.
    """
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > bytes_max:
        raise body_too_large(bytes_max)
    until = asyncio.get_running_loop().time() + wait_s
    chunks = aiter(request.stream())
    received_bytes = 0
    while True:
        try:
            # Around each wait by itself: what the reader does between two is none of this.
            async with asyncio.timeout_at(until):
                chunk = await anext(chunks, None)
        except TimeoutError:
            message = "the body did not arrive in time"
            raise ApiError(
                ErrorAnswer(status=HTTPStatus.REQUEST_TIMEOUT, message=message)
            ) from None
        if chunk is None:
            return
        received_bytes += len(chunk)
        if received_bytes > bytes_max:
            raise body_too_large(bytes_max)
        yield chunk


async def whole_body(request: Request, *, bytes_max: int, wait_s: float) -> bytes:
    """Return the body; bounds and errors as of `body_chunks`."""
    body = bytearray()
    async for chunk in body_chunks(request, bytes_max=bytes_max, wait_s=wait_s):
        body += chunk
    return bytes(body)


def body_too_large(bytes_max: int) -> ApiError:
    """The caller sends more than is taken."""
    message = f"the body is larger than {bytes_max / MIB:g} MiB"
    return ApiError(
        ErrorAnswer(status=HTTPStatus.REQUEST_ENTITY_TOO_LARGE, message=message, code="too_large")
    )
