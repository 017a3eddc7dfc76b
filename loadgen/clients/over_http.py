"""Sends requests to an OpenAI-compatible server and reads the answers as server-sent events."""

import json
from enum import StrEnum
from typing import Final, Self

import httpx

from libs.contracts.online import FailReason
from libs.runtime.clock import Clock
from loadgen.clients.answer_check import AnswerCheck, error_words
from loadgen.clients.endings import broken, failed, rejected
from loadgen.clients.sampling import Sampling
from loadgen.records import Ending, Observation
from loadgen.workload import LoadRequest

CONNECT_TIMEOUT_S: Final = 10.0
"""Reading has no limit of its own: the run bounds every request as a whole."""
EVENT_STREAM: Final = "text/event-stream"
REQUEST_ID_HEADER: Final = "x-request-id"
CLIENT_ERRORS: Final = range(400, 500)
ERROR_BYTES_MAX: Final = 65_536


class Endpoint(StrEnum):
    """Which of the two APIs to speak. Chat takes text alone."""

    COMPLETIONS = "completions"
    CHAT = "chat"


class HttpSender:
    """A Sender over HTTP/1.1, one connection per open stream. Nothing is retried."""

    def __init__(
        self,
        base_url: str,
        *,
        model: str,
        endpoint: Endpoint,
        sampling: Sampling,
        streams_open_max: int,
        clock: Clock,
        api_key: str = "",
    ) -> None:
        self._model = model
        self._endpoint = endpoint
        self._sampling = sampling
        self._clock = clock
        # A proxy in the environment must not stand between a load and what it measures.
        self._http = httpx.AsyncClient(
            base_url=base_url,
            headers={"authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=httpx.Timeout(None, connect=CONNECT_TIMEOUT_S),
            limits=httpx.Limits(max_connections=streams_open_max),
            trust_env=False,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def send(self, request: LoadRequest, seen: Observation) -> Ending:
        """See Sender.send."""
        path, body = self._order(request)
        is_text = isinstance(request.prompt, str)
        check = AnswerCheck(
            output_tokens_max=request.output_tokens,
            is_length_exact=self._sampling.is_length_exact,
            token_ids_sent=None if is_text else len(request.prompt),
        )
        has_begun = False
        try:
            async with self._http.stream("POST", path, json=body) as response:
                seen.request_id = response.headers.get(REQUEST_ID_HEADER, "")
                if response.status_code != httpx.codes.OK:
                    return await _refusal(response)
                if not response.headers.get("content-type", "").startswith(EVENT_STREAM):
                    return broken("not_a_stream", "the answer is not an event stream")
                has_begun = True
                await self._read(response, check, seen)
        except (httpx.TransportError, httpx.StreamError) as error:
            explanation = f"{type(error).__name__}: {error}"
            if not has_begun:
                return failed("unreachable", explanation)
            return check.verdict(cut=explanation)
        return check.verdict(cut=None)

    async def _read(self, response: httpx.Response, check: AnswerCheck, seen: Observation) -> None:
        try:
            async for line in response.aiter_lines():
                tokens = check.take_line(line)
                if tokens:
                    seen.see_tokens(tokens, now_ns=self._clock.now_ns())
        finally:
            seen.prompt_tokens, seen.output_tokens = check.prompt_tokens, check.output_tokens

    def _order(self, request: LoadRequest) -> tuple[str, dict[str, object]]:
        prompt = request.prompt
        body: dict[str, object] = {
            "model": self._model,
            "max_tokens": request.output_tokens,
            "temperature": self._sampling.temperature,
            "seed": request.seed,
            "ignore_eos": self._sampling.is_length_exact,
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
            # Servers that know it put ids into the chunks; the others ignore it.
            "return_token_ids": True,
        }
        match self._endpoint:
            case Endpoint.CHAT:
                assert isinstance(prompt, str), "chat takes text"
                body["messages"] = [{"role": "user", "content": prompt}]
                return "/v1/chat/completions", body
            case Endpoint.COMPLETIONS:
                body["prompt"] = prompt if isinstance(prompt, str) else list(prompt)
                return "/v1/completions", body


async def _refusal(response: httpx.Response) -> Ending:
    """Tell a refusal from a failure by the status, and by the code where a 503 may be either."""
    status = response.status_code
    code, message = _error_of(await _beginning(response))
    reason = code or f"http_{status}"
    is_failure = code in tuple(FailReason)
    if not is_failure and (status in CLIENT_ERRORS or status == httpx.codes.SERVICE_UNAVAILABLE):
        return rejected(reason, f"HTTP {status}: {message}")
    return failed(reason, f"HTTP {status}: {message}")


async def _beginning(response: httpx.Response) -> bytes:
    body = b""
    async for part in response.aiter_bytes():
        body += part
        if len(body) > ERROR_BYTES_MAX:
            break
    return body[:ERROR_BYTES_MAX]


def _error_of(body: bytes) -> tuple[str, str]:
    text = body.decode(errors="replace")
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError):
        return "", text
    error = parsed.get("error") if isinstance(parsed, dict) else None
    if not isinstance(error, dict):
        return "", text
    code, message = error_words(error)
    return (code if error.get("code") else ""), message
