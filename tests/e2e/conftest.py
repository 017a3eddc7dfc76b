"""A fleet of real processes, and forty streams through it that a test may disturb.

Half of the streams go over NATS and half over HTTP, half of each greedy and half seeded.
"""

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx
import pytest

from libs.client.client import TideClient
from services.launcher.fleet import Fleet
from services.launcher.model_source import bundled_model
from services.launcher.recipes import FleetOptions
from tests.e2e.compose_project import ComposeProject, lay_torch_wheel_ready, why_not

STREAMS_PER_PROTOCOL = 20
MAX_TOKENS = 300
STRIKE_AFTER_TOKENS = 12
DEADLINE_S = 120.0

QUESTIONS = (
    "What does str.split do?",
    "Tell me about the json module.",
    "What is a dictionary?",
    "What does os.path.join do?",
    "What is the heapq module for?",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--dashboard-picture", help="where to keep the picture of the dashboard")
    parser.addoption("--batch-lines", type=int, default=200, help="lines of the batch under fire")


Strike = Callable[[Fleet], Awaitable[None]]


@dataclass(slots=True)
class Seen:
    """What one client received: token ids over NATS, pieces of text over HTTP."""

    pieces: list[int] | list[str] = field(default_factory=list)
    finish_reason: str | None = None
    completion_tokens: int = 0

    @property
    def answer(self) -> tuple[object, str | None, int]:
        """The answer, whatever the sizes of the pieces it came in."""
        whole = "".join(map(str, self.pieces)) if _is_text(self.pieces) else tuple(self.pieces)
        return whole, self.finish_reason, self.completion_tokens


def _is_text(pieces: list[int] | list[str]) -> bool:
    return bool(pieces) and isinstance(pieces[0], str)


def sampling_of(number: int) -> dict[str, Any]:
    """Every other stream is greedy; the rest are seeded."""
    if number % 2 == 0:
        return {"temperature": 0.0}
    return {"temperature": 0.9, "top_p": 0.95, "seed": 1000 + number}


def question_of(number: int) -> list[dict[str, str]]:
    question = QUESTIONS[number % len(QUESTIONS)]
    return [{"role": "user", "content": f"{question} ({number})"}]


async def stream_over_nats(client: TideClient, alias: str, number: int, seen: Seen) -> None:
    stream = client.stream(
        model=alias,
        messages=question_of(number),
        max_tokens=MAX_TOKENS,
        ignore_eos=True,
        **sampling_of(number),
    )
    pieces: list[int] = []
    seen.pieces = pieces
    async with stream:
        async for token in stream:
            assert token.index == len(pieces)
            pieces.append(token.token_id)
    assert stream.usage is not None
    seen.finish_reason = stream.finish_reason
    seen.completion_tokens = stream.usage.completion_tokens


async def stream_over_http(http: httpx.AsyncClient, alias: str, number: int, seen: Seen) -> None:
    body = {
        "model": alias,
        "messages": question_of(number),
        "max_tokens": MAX_TOKENS,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
        **sampling_of(number),
    }
    pieces: list[str] = []
    seen.pieces = pieces
    is_done = False
    async with http.stream("POST", "/v1/chat/completions", json=body) as response:
        assert response.status_code == 200, await response.aread()
        async for line in response.aiter_lines():
            if not line.startswith("data: "):
                continue
            if line == "data: [DONE]":
                is_done = True
                continue
            chunk = json.loads(line.removeprefix("data: "))
            assert "error" not in chunk, chunk
            if chunk.get("usage"):
                seen.completion_tokens = chunk["usage"]["completion_tokens"]
            for choice in chunk["choices"]:
                if choice["delta"].get("content"):
                    pieces.append(choice["delta"]["content"])
                seen.finish_reason = choice["finish_reason"] or seen.finish_reason
    assert is_done, "the stream ended without [DONE]"


class FleetUnderTest:
    """The fleet with its loop, and streams through it over each protocol."""

    def __init__(self, folder: Path, *, workers: int, routers: int, nats_url: str | None) -> None:
        self.runner = asyncio.Runner()
        self._size = (workers, routers)
        self.fleet = Fleet(
            FleetOptions(
                model=bundled_model(),
                data_folder=folder,
                workers=workers,
                routers=routers,
                http_port=0,
                nats_url=nats_url,
            ),
            say=print,
        )

    @cached_property
    def undisturbed(self) -> list[Seen]:
        """What all streams saw when nothing happened."""
        return self.runner.run(self.run_streams(strike=None))

    def start(self) -> None:
        self.runner.run(self.fleet.start())

    def stop(self) -> None:
        self.runner.run(self.fleet.stop())
        self.runner.close()

    async def run_streams(self, *, strike: Strike | None) -> list[Seen]:
        """Run all streams, strike once each has received some tokens, return what they saw."""
        assert self.fleet.http_url is not None
        seen = [Seen() for _ in range(2 * STREAMS_PER_PROTOCOL)]
        limits = httpx.Limits(max_connections=STREAMS_PER_PROTOCOL)
        async with (
            asyncio.timeout(DEADLINE_S),
            await TideClient.connect(self.fleet.nats_url) as client,
            httpx.AsyncClient(base_url=self.fleet.http_url, timeout=60, limits=limits) as http,
            asyncio.TaskGroup() as streams,
        ):
            alias = self.fleet.alias
            for number in range(STREAMS_PER_PROTOCOL):
                streams.create_task(stream_over_nats(client, alias, number, seen[2 * number]))
                streams.create_task(stream_over_http(http, alias, number, seen[2 * number + 1]))
            if strike is not None:
                await _until(lambda: all(len(s.pieces) >= STRIKE_AFTER_TOKENS for s in seen))
                assert not any(s.finish_reason for s in seen), "struck too late to mean anything"
                await strike(self.fleet)
        return seen

    async def _until_whole(self) -> None:
        view = self.fleet.view
        async with asyncio.timeout(DEADLINE_S):
            await _until(lambda: (len(view.workers()), len(view.routers())) == self._size)

    def check(self, strike: Strike) -> None:
        """Every disturbed answer equals its undisturbed twin; then the fleet is whole again."""
        self.runner.run(self._until_whole())
        undisturbed = self.undisturbed
        disturbed = self.runner.run(self.run_streams(strike=strike))
        for number, (one, other) in enumerate(zip(disturbed, undisturbed, strict=True)):
            assert one.answer == other.answer, f"stream {number} differs"
            assert one.completion_tokens == MAX_TOKENS


async def _until(condition: Callable[[], bool]) -> None:
    """Look at what clients and reports say, 100 times a second; the caller bounds the time."""
    while not condition():
        await asyncio.sleep(0.01)


@pytest.fixture(scope="module")
def start_fleet(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[..., FleetUnderTest]]:
    """Starts fleets that end with the test file."""
    started: list[FleetUnderTest] = []

    def start(*, workers: int, routers: int, nats_url: str | None = None) -> FleetUnderTest:
        folder = tmp_path_factory.mktemp("fleet")
        under_test = FleetUnderTest(folder, workers=workers, routers=routers, nats_url=nats_url)
        started.append(under_test)
        under_test.start()
        return under_test

    try:
        yield start
    finally:
        for under_test in started:
            under_test.stop()


@pytest.fixture(scope="session")
def _images() -> None:
    """The images of all services, built once."""
    missing = why_not()
    if missing is not None:
        pytest.skip(f"cannot run containers: {missing}")
    lay_torch_wheel_ready()
    ComposeProject("tideserve-test-build").build()


@pytest.fixture(scope="module")
def compose_project(_images: None, request: pytest.FixtureRequest) -> Iterator[ComposeProject]:
    """A project of the file's own, with images built and nothing started; removed at its end."""
    project = ComposeProject(f"{request.path.stem.replace('_', '-')}-{os.getpid()}")
    try:
        yield project
    finally:
        project.down()
