"""Batches through OpenAI's own client, on a fleet of real processes that a test may kill."""

import asyncio
import json
import os
import random
import signal
import socket
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import openai
import pytest
from openai.types import Batch

from examples.offline_benchmark.__main__ import main as benchmark
from examples.summarise_documents.__main__ import main as summarise
from services.launcher.fleet import Fleet
from services.launcher.model_source import bundled_model
from services.launcher.recipes import FleetOptions

ENDPOINT = "/v1/chat/completions"
FINAL = ("completed", "failed", "expired", "cancelled")
DEADLINE_S = 240.0
DISTINCT_QUESTIONS = 20
STRIKE_AFTER_S = 0.7
STRIKES_RARER = 1.2
VICTIMS = ("http-gateway", "offline-queue", "gpu-worker", "online-router")
FROZEN = "frozen offline-queue"
LEASE_S = 3
FROZEN_S = LEASE_S + 1.0
"""Long enough that the parts of a frozen queue are another's when it wakes."""
LINES_PER_BAD_LINE = 67
ATTEMPTS = 12
"""Of OpenAI's client: enough for the minute that replacing a gateway may take."""

ResultT = TypeVar("ResultT")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "batch_lines" in metafunc.fixturenames:
        metafunc.parametrize("batch_lines", [metafunc.config.getoption("--batch-lines")])


class FleetOfBatches:
    """A fleet with its loop, and OpenAI's client of it."""

    def __init__(self, folder: Path) -> None:
        self._runner = asyncio.Runner()
        self.fleet = Fleet(
            FleetOptions(
                model=bundled_model(),
                data_folder=folder,
                workers=2,
                routers=2,
                offline_queues=2,
                # A killed queue's lines go on soon, so that the test does.
                queue_settings={"lease_s": str(LEASE_S)},
                # A gateway that is replaced must be found again.
                http_port=a_free_port(),
            ),
            say=print,
        )

    def start(self) -> None:
        self._runner.run(self.fleet.start())

    def stop(self) -> None:
        self._runner.run(self.fleet.stop())
        self._runner.close()

    def run(self, work: Coroutine[Any, Any, ResultT], *, deadline_s: float = DEADLINE_S) -> ResultT:
        """Run the work on the fleet's own loop, so that the fleet is kept up meanwhile."""
        return self._runner.run(asyncio.wait_for(work, deadline_s))

    def client(self, **options: Any) -> openai.AsyncOpenAI:
        url = self.fleet.http_url
        assert url is not None
        return openai.AsyncOpenAI(
            base_url=f"{url}/v1",
            api_key="none",
            **{"max_retries": ATTEMPTS, "timeout": 30, **options},
        )


def a_free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FleetOfBatches]:
    under_test = FleetOfBatches(tmp_path_factory.mktemp("fleet"))
    try:
        under_test.start()
        yield under_test
    finally:
        under_test.stop()


def a_body(number: int, **changes: Any) -> dict[str, Any]:
    """Return one of a few distinct requests, all greedy, so that answers can be compared."""
    kind = number % DISTINCT_QUESTIONS
    return {
        "model": "tide-tiny",
        "messages": [{"role": "user", "content": f"What does str.split do? ({kind})"}],
        "max_tokens": 24 + kind,
        "ignore_eos": True,
        "temperature": 0,
        **changes,
    }


def a_line(custom_id: str, body: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    body = a_body(0) if body is None else body
    return {"custom_id": custom_id, "method": "POST", "url": ENDPOINT, "body": body, **changes}


def a_bad_line(custom_id: str) -> dict[str, Any]:
    """One that passes validation and that the fleet refuses: its answer cannot fit."""
    return a_line(custom_id, a_body(0, max_tokens=1_000_000, min_tokens=5_000))


def file_of(lines: Sequence[Any]) -> bytes:
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


async def submitted(client: openai.AsyncOpenAI, content: bytes, **options: Any) -> Batch:
    file = await client.files.create(file=("lines.jsonl", content), purpose="batch")
    request = {"endpoint": ENDPOINT, "completion_window": "24h", **options}
    return await client.batches.create(input_file_id=file.id, **request)


async def ended(client: openai.AsyncOpenAI, batch_id: str) -> Batch:
    while True:
        batch = await client.batches.retrieve(batch_id)
        if batch.status in FINAL:
            return batch
        await asyncio.sleep(0.2)


async def rows_of(client: openai.AsyncOpenAI, file_id: str | None) -> list[dict[str, Any]]:
    if file_id is None:
        return []
    content = await client.files.content(file_id)
    return [json.loads(line) for line in content.text.splitlines()]


async def direct_answers(client: openai.AsyncOpenAI) -> list[str | None]:
    """Ask each distinct question by itself."""
    answers = []
    for number in range(DISTINCT_QUESTIONS):
        body = a_body(number)
        extra_body = {"ignore_eos": body.pop("ignore_eos")}
        answers.append(client.chat.completions.create(**body, extra_body=extra_body))
    return [answer.choices[0].message.content for answer in await asyncio.gather(*answers)]


def assert_each_line_is_answered_once_as_if_alone(
    rows: Sequence[dict[str, Any]], lines: int, alone: Sequence[str | None]
) -> None:
    custom_ids = [row["custom_id"] for row in rows]
    assert sorted(custom_ids) == sorted(f"line-{number}" for number in range(lines))
    for row in rows:
        number = int(row["custom_id"].removeprefix("line-"))
        assert row["error"] is None
        assert row["response"]["status_code"] == 200
        text = row["response"]["body"]["choices"][0]["message"]["content"]
        assert text == alone[number % DISTINCT_QUESTIONS], row["custom_id"]


def test_a_batch_is_answered_as_its_lines_are_alone_and_bad_lines_are_told(
    stack: FleetOfBatches,
) -> None:
    async def work() -> None:
        async with stack.client() as client:
            alone = await direct_answers(client)
            lines = [a_line(f"line-{number}", a_body(number)) for number in range(40)]
            batch = await submitted(
                client, file_of([*lines, a_bad_line("too-long")]), metadata={"run": "1"}
            )
            batch = await ended(client, batch.id)
            assert batch.status == "completed"
            assert batch.metadata == {"run": "1"}
            assert batch.request_counts is not None
            counts = batch.request_counts
            assert (counts.total, counts.completed, counts.failed) == (41, 40, 1)
            assert batch.usage is not None
            assert batch.usage.output_tokens > 0
            rows = await rows_of(client, batch.output_file_id)
            assert_each_line_is_answered_once_as_if_alone(rows, 40, alone)
            errors = await rows_of(client, batch.error_file_id)
            assert [row["custom_id"] for row in errors] == ["too-long"]

    stack.run(work())


def test_completions_are_an_endpoint_of_their_own(stack: FleetOfBatches) -> None:
    async def work() -> None:
        async with stack.client() as client:
            body = {"model": "tide-tiny", "prompt": "The tide", "max_tokens": 5, "temperature": 0}
            alone = await client.completions.create(**body)
            line = a_line("one", body, url="/v1/completions")
            batch = await submitted(client, file_of([line]), endpoint="/v1/completions")
            batch = await ended(client, batch.id)
            rows = await rows_of(client, batch.output_file_id)
            assert rows[0]["response"]["body"]["choices"][0]["text"] == alone.choices[0].text

    stack.run(work())


NOT_JSON = b'{"custom_id": "a", "method"\n'
BAD_FILES = {
    "not JSONL": (NOT_JSON, 1),
    "one line of two": (file_of([a_line("a")]) + NOT_JSON, 2),
    "no object": (b"[1, 2]\n", 1),
    "not UTF-8": (b'{"custom_id": "\xff"}\n', 1),
    "empty": (b"", None),
    "only blank lines": (b"\n\n", None),
    "no custom_id": (file_of([{**a_line("a"), "custom_id": None}]), 1),
    "the same custom_id": (file_of([a_line("a"), a_line("b"), a_line("a")]), 3),
    "two models": (file_of([a_line("a"), a_line("b", a_body(0, model="other"))]), 2),
    "another endpoint": (file_of([a_line("a", url="/v1/completions")]), 1),
    "another method": (file_of([a_line("a", method="GET")]), 1),
    "no body": (file_of([a_line("a", {})]), 1),
    "a line too long": (file_of([a_line("a"), a_line("b", a_body(0, user="x" * 1_100_000))]), 2),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_file_that_cannot_be_asked_fails_and_says_where(stack: FleetOfBatches, kind: str) -> None:
    content, line = BAD_FILES[kind]

    async def work() -> None:
        async with stack.client() as client:
            batch = await ended(client, (await submitted(client, content)).id)
            assert batch.status == "failed"
            assert batch.failed_at is not None
            assert batch.output_file_id is None
            assert batch.errors is not None
            assert batch.errors.data
            error = batch.errors.data[0]
            assert error.message
            assert error.code
            if line is not None:
                assert error.line == line

    stack.run(work())


def test_what_is_not_done_by_the_deadline_expires_and_says_so(stack: FleetOfBatches) -> None:
    async def work() -> None:
        async with stack.client() as client:
            # Nobody serves this model yet: its lines wait, as long as they may.
            content = file_of([a_line(f"c{n}", a_body(n, model="other")) for n in range(3)])
            batch = await submitted(client, content, completion_window="2s")
            batch = await ended(client, batch.id)
            assert batch.status == "expired"
            assert batch.expired_at is not None
            assert batch.output_file_id is None
            errors = await rows_of(client, batch.error_file_id)
            assert {row["custom_id"] for row in errors} == {"c0", "c1", "c2"}
            assert {row["error"]["code"] for row in errors} == {"batch_expired"}

    stack.run(work())


def test_a_batch_is_cancelled_once_and_keeps_what_is_answered(stack: FleetOfBatches) -> None:
    async def work() -> None:
        async with stack.client() as client:
            lines = [a_line(f"c{n}", a_body(n, max_tokens=400)) for n in range(60)]
            batch = await submitted(client, file_of(lines))
            while not (batch.request_counts and batch.request_counts.completed):
                batch = await client.batches.retrieve(batch.id)
                await asyncio.sleep(0.1)
            with pytest.raises(openai.ConflictError, match="being read"):
                await client.files.delete(batch.input_file_id)
            assert (await client.batches.cancel(batch.id)).status in ("cancelling", "cancelled")
            with pytest.raises(openai.ConflictError):
                await client.batches.cancel(batch.id)
            batch = await ended(client, batch.id)
            assert batch.status == "cancelled"
            answered = await rows_of(client, batch.output_file_id)
            cancelled = await rows_of(client, batch.error_file_id)
            assert answered
            assert cancelled
            custom_ids = [row["custom_id"] for row in (*answered, *cancelled)]
            assert sorted(custom_ids) == sorted(line["custom_id"] for line in lines)
            assert (await client.files.delete(batch.input_file_id)).deleted

    stack.run(work())


def test_batches_and_files_are_listed_page_by_page(stack: FleetOfBatches) -> None:
    async def work() -> None:
        async with stack.client(default_headers={"x-tenant": "listing"}) as client:
            made = [(await submitted(client, file_of([a_line("a")]))).id for _ in range(5)]
            for batch_id in made:
                assert (await ended(client, batch_id)).status == "completed"
            assert [batch.id async for batch in client.batches.list(limit=2)] == made[::-1]
            purposes = [file.purpose async for file in client.files.list(limit=3)]
            assert sorted(purposes) == ["batch"] * 5 + ["batch_output"] * 5

    stack.run(work())


def test_the_examples_run_as_their_readmes_say(
    stack: FleetOfBatches, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = ["--url", f"{stack.fleet.http_url}/v1"]
    folder = "examples/summarise_documents/documents"

    async def work() -> None:
        arguments = [folder, "--into", str(tmp_path), "--max-tokens", "24", *url]
        assert await asyncio.to_thread(summarise, arguments) == 0
        assert await asyncio.to_thread(benchmark, url) == 0

    stack.run(work())
    assert len(list(tmp_path.glob("*.summary.txt"))) == 3
    assert capsys.readouterr().out.splitlines()[-1].startswith("all ")


async def strike_at_random(fleet: Fleet, rng: random.Random, struck: list[str]) -> None:
    """Kill or freeze one process at a time, by its id; the fleet replaces what is killed. Every
    kind comes to its turn.

    The strikes grow rarer, so that the fleet gets its work done in the end.
    """
    kinds = (*VICTIMS, FROZEN)
    pause_s = STRIKE_AFTER_S
    while True:
        for kind in rng.sample(kinds, len(kinds)):
            await asyncio.sleep(pause_s)
            pause_s *= STRIKES_RARER
            name = kind.split()[-1]
            victim = rng.choice([child for child in fleet.children if child.name.startswith(name)])
            print(f"strikes {victim.name}: {kind}")
            struck.append(kind)
            with suppress(ProcessLookupError):
                if kind == FROZEN:
                    await freeze(victim.process_id)
                else:
                    os.kill(victim.process_id, signal.SIGKILL)


async def freeze(process_id: int) -> None:
    """Have a process stand still until its leases are another's."""
    os.kill(process_id, signal.SIGSTOP)
    try:
        await asyncio.sleep(FROZEN_S)
    finally:
        os.kill(process_id, signal.SIGCONT)


@pytest.mark.timeout(0)  # its own deadline grows with the lines
def test_every_line_is_answered_exactly_once_while_processes_are_killed(
    stack: FleetOfBatches, batch_lines: int
) -> None:
    seed = 7
    struck: list[str] = []

    async def work() -> None:
        async with stack.client() as client:
            alone = await direct_answers(client)
            lines = [a_line(f"line-{n}", a_body(n)) for n in range(batch_lines)]
            bad = [f"bad-{n}" for n in range(0, batch_lines, LINES_PER_BAD_LINE)]
            for number, custom_id in enumerate(bad):
                lines.insert(number * LINES_PER_BAD_LINE, a_bad_line(custom_id))
            striking = asyncio.create_task(
                strike_at_random(stack.fleet, random.Random(seed), struck)
            )
            # A fast machine ends one batch before every kind of process had its turn.
            while not {*VICTIMS, FROZEN} <= set(struck):
                batch = await ended(client, (await submitted(client, file_of(lines))).id)
                assert batch.status == "completed", batch.errors
                rows = await rows_of(client, batch.output_file_id)
                assert_each_line_is_answered_once_as_if_alone(rows, batch_lines, alone)
                errors = await rows_of(client, batch.error_file_id)
                assert [row["custom_id"] for row in errors] == bad
                assert {row["response"]["status_code"] for row in errors} == {400}
            striking.cancel()

    print(f"reproduce: seed {seed}, {batch_lines} lines")
    stack.run(work(), deadline_s=DEADLINE_S + batch_lines)
