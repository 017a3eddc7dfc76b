"""Sends the demo's requests and writes down every token with the time at which it came."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final

import httpx

from libs.client.client import TideClient
from libs.client.errors import RequestFailedError, RequestRefused
from libs.kernel.errors import Unavailable
from libs.kernel.units import seconds
from libs.runtime.clock import Clock
from services.launcher.demo_requests import MAX_TOKENS, DemoRequest, Protocol

STREAM_TIMEOUT_S: Final = 120.0
"""A stream that has not ended by then counts as lost."""


@dataclass(slots=True)
class StreamRecord:
    """What a client saw of one answer. Over HTTP a piece of text stands for a token."""

    request: DemoRequest
    started_at_ns: int
    indices: list[int] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    token_at_ns: list[int] = field(default_factory=list)
    tokens_reported: int | None = None
    """How many tokens the end of the stream says there were."""
    error: str | None = None
    is_finished: bool = False

    @property
    def text(self) -> str:
        """The answer so far."""
        return "".join(self.texts)

    @property
    def ttft_ns(self) -> int | None:
        """From sending the request to its first token."""
        return self.token_at_ns[0] - self.started_at_ns if self.token_at_ns else None

    @property
    def gap_ns_max(self) -> int:
        """The longest pause between two tokens."""
        return max((later - earlier for earlier, later in pairwise(self.token_at_ns)), default=0)


class Load:
    """All streams of one run; `records` can be watched while they run."""

    def __init__(
        self,
        *,
        client: TideClient,
        http_url: str,
        alias: str,
        clock: Clock,
        run_name: str,
        stream_timeout_s: float = STREAM_TIMEOUT_S,
    ) -> None:
        self.records: list[StreamRecord] = []
        self._client = client
        self._http_url = http_url
        self._alias = alias
        self._clock = clock
        self._run_name = run_name
        self._stream_timeout_s = stream_timeout_s

    @property
    def tokens(self) -> int:
        """Pieces received so far over all streams."""
        return sum(len(record.token_at_ns) for record in self.records)

    @property
    def streams_open(self) -> int:
        """Streams that have begun and not ended."""
        return sum(not r.is_finished and r.error is None for r in self.records)

    async def run(self, requests: Sequence[DemoRequest], *, is_paced: bool) -> list[StreamRecord]:
        """Send the requests, at their arrival times if paced, and return when all have ended."""
        limits = httpx.Limits(max_connections=len(requests))
        async with (
            httpx.AsyncClient(timeout=self._stream_timeout_s, limits=limits) as http,
            asyncio.TaskGroup() as streams,
        ):
            for request in requests:
                streams.create_task(self._stream(request, http=http, is_paced=is_paced))
        return sorted(self.records, key=lambda record: record.request.index)

    async def _stream(
        self, request: DemoRequest, *, http: httpx.AsyncClient, is_paced: bool
    ) -> None:
        if is_paced:
            await asyncio.sleep(seconds(request.arrival_ns))
        record = StreamRecord(request=request, started_at_ns=self._clock.now_ns())
        self.records.append(record)
        try:
            async with asyncio.timeout(self._stream_timeout_s):
                match request.protocol:
                    case Protocol.NATS:
                        await self._over_nats(record)
                    case Protocol.HTTP:
                        await self._over_http(record, http)
        except (RequestRefused, RequestFailedError, Unavailable, httpx.HTTPError) as error:
            record.error = f"{type(error).__name__}: {error}"
        except TimeoutError:
            record.error = f"not ended after {self._stream_timeout_s:g} s"

    async def _over_nats(self, record: StreamRecord) -> None:
        request = record.request
        stream = self._client.stream(
            model=self._alias,
            messages=request.messages,
            max_tokens=MAX_TOKENS,
            temperature=request.temperature,
            seed=request.seed,
            request_id=f"{self._run_name}-{request.index}",
        )
        async with stream:
            async for token in stream:
                record.indices.append(token.index)
                record.token_ids.append(token.token_id)
                self._note(record, token.text)
        assert stream.usage is not None
        record.tokens_reported = stream.usage.completion_tokens
        record.is_finished = True

    async def _over_http(self, record: StreamRecord, http: httpx.AsyncClient) -> None:
        request = record.request
        body = {
            "model": self._alias,
            "messages": request.messages,
            "max_tokens": MAX_TOKENS,
            "temperature": request.temperature,
            "seed": request.seed,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        url = f"{self._http_url}/v1/chat/completions"
        async with http.stream("POST", url, json=body) as response:
            if response.status_code != httpx.codes.OK:
                text = (await response.aread()).decode(errors="replace")
                record.error = f"HTTP {response.status_code}: {text[:200]}"
                return
            async for chunk in _chunks(response):
                self._take_chunk(record, chunk)
        if record.error is None and not record.is_finished:
            record.error = "the stream ended without a finish_reason"

    def _take_chunk(self, record: StreamRecord, chunk: dict[str, Any]) -> None:
        if "error" in chunk:
            record.error = str(chunk["error"])
            return
        if chunk.get("usage"):
            record.tokens_reported = int(chunk["usage"]["completion_tokens"])
        for choice in chunk.get("choices", []):
            if choice["delta"].get("content"):
                self._note(record, choice["delta"]["content"])
            if choice.get("finish_reason"):
                record.is_finished = True

    def _note(self, record: StreamRecord, text: str) -> None:
        record.texts.append(text)
        record.token_at_ns.append(self._clock.now_ns())


async def _chunks(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    """Yield the JSON objects of a server-sent event stream."""
    async for line in response.aiter_lines():
        if line.startswith("data: ") and line != "data: [DONE]":
            yield json.loads(line.removeprefix("data: "))


async def wait_until(condition: Callable[[], bool], *, run: asyncio.Task[Any]) -> bool:
    """Return True once the condition holds, False if the run ends first; looks 50 times a second.

    The condition is about what clients have received, of which nothing else tells.
    """
    while not condition():
        done, _ = await asyncio.wait([run], timeout=0.02)
        if done:
            return condition()
    return True
