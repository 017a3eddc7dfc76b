"""The process that tries schemas: what breaks it costs one refusal and nobody else anything."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from libs.contracts.online import RejectReason
from libs.kernel.units import NS_PER_MS, NS_PER_S
from services.online_router.schema_desk import WAITING_MAX, SchemaDesk
from services.online_router.tokenization import load_tokenization

MODEL = Path(__file__).resolve().parents[3] / "models" / "tide-tiny"
TokenizerOf = Callable[[str], str | None]
POINT = '{"type":"object","properties":{"x":{"type":"integer"}}}'


@pytest.fixture(scope="module")
def tokenizer_of() -> TokenizerOf:
    return load_tokenization((str(MODEL),)).serialised


def with_desk(
    tokenizer_of: TokenizerOf,
    work: Callable[[SchemaDesk], Awaitable[None]],
    *,
    check_ns_max: int = 5 * NS_PER_S,
) -> None:
    async def run() -> None:
        desk = SchemaDesk(tokenizer_of, check_ns_max=check_ns_max)
        try:
            await work(desk)
        finally:
            await desk.close()

    asyncio.run(run())


def test_good_and_bad_schemas_are_told_apart_and_remembered(
    tokenizer_of: TokenizerOf,
) -> None:
    async def work(desk: SchemaDesk) -> None:
        for _ in range(2):
            assert await desk.refusal("tide-tiny", POINT) is None
            refusal = await desk.refusal("tide-tiny", '{"type":"nonsense"}')
            assert refusal is not None
            assert refusal[0] is RejectReason.INVALID
            assert "nonsense" in refusal[1]
        assert desk.trials == 2

    with_desk(tokenizer_of, work)


def test_a_schema_past_its_time_is_refused_and_the_next_one_is_tried_anew(
    tokenizer_of: TokenizerOf,
) -> None:
    async def work(desk: SchemaDesk) -> None:
        refusal = await desk.refusal("tide-tiny", POINT)
        assert refusal is not None
        assert refusal[0] is RejectReason.INVALID
        assert "too much time" in refusal[1]
        desk.check_ns_max = 5 * NS_PER_S
        assert await desk.refusal("tide-tiny", POINT) is None

    with_desk(tokenizer_of, work, check_ns_max=1)


def test_a_process_that_dies_costs_one_schema_alone(tokenizer_of: TokenizerOf) -> None:
    async def work(desk: SchemaDesk) -> None:
        assert await desk.refusal("tide-tiny", POINT) is None
        process_id = desk.process_id
        assert process_id is not None
        os.kill(process_id, signal.SIGKILL)
        refusal = await desk.refusal("tide-tiny", '{"type":"string"}')
        assert refusal is not None
        assert await desk.refusal("tide-tiny", '{"type":"string"}') is None
        assert desk.process_id not in (None, process_id)

    with_desk(tokenizer_of, work)


def test_an_answer_that_nobody_took_is_not_taken_for_the_next(
    tokenizer_of: TokenizerOf,
) -> None:
    async def work(desk: SchemaDesk) -> None:
        assert await desk.refusal("tide-tiny", "{}") is None
        asking = asyncio.create_task(desk.refusal("tide-tiny", '{"type":"nonsense"}'))
        await asyncio.sleep(0)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        assert asking.cancelled()
        assert await desk.refusal("tide-tiny", POINT) is None

    with_desk(tokenizer_of, work)


def test_past_the_bound_of_waiting_schemas_one_more_is_refused_for_now(
    tokenizer_of: TokenizerOf,
) -> None:
    async def work(desk: SchemaDesk) -> None:
        schemas = [f'{{"minimum":{number}}}' for number in range(WAITING_MAX + 1)]
        refusals = await asyncio.gather(*(desk.refusal("tide-tiny", s) for s in schemas))
        assert refusals[:WAITING_MAX] == [None] * WAITING_MAX
        assert refusals[-1] is not None
        assert refusals[-1][0] is RejectReason.OVERLOADED
        assert await desk.refusal("tide-tiny", schemas[-1]) is None

    with_desk(tokenizer_of, work)


def test_a_process_that_cannot_start_is_the_fleets_fault_not_the_schemas() -> None:
    async def work(desk: SchemaDesk) -> None:
        refusal = await desk.refusal("broken", POINT)
        assert refusal is not None
        assert refusal[0] is RejectReason.UNAVAILABLE
        other = await desk.refusal("slow", POINT)
        assert other is not None
        assert other[0] is RejectReason.INVALID

    with_desk({"broken": "no tokenizer", "slow": None}.get, work)


def test_the_loop_turns_while_a_schema_is_tried(tokenizer_of: TokenizerOf) -> None:
    async def work(desk: SchemaDesk) -> None:
        longest_ns = 0

        async def watch() -> None:
            nonlocal longest_ns
            loop = asyncio.get_running_loop()
            while True:
                before = loop.time()
                await asyncio.sleep(0.001)
                longest_ns = max(longest_ns, round((loop.time() - before) * NS_PER_S))

        watching = asyncio.create_task(watch())
        fuel = await desk.refusal("tide-tiny", '{"type":"integer","multipleOf":828000007}')
        watching.cancel()
        assert fuel is not None
        assert "fuel" in fuel[1]
        assert longest_ns < 500 * NS_PER_MS

    with_desk(tokenizer_of, work)
