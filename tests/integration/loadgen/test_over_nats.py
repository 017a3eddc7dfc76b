"""Over NATS, too, an answer counts only if its tokens, count and length agree."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from libs.contracts.online import FailReason, FinishReason, RejectReason
from libs.kernel.units import NS_PER_MS
from libs.runtime.clock import SystemClock
from libs.runtime.memory_bus import MemoryBus
from libs.runtime.memory_hub import MemoryHub
from loadgen.clients.over_nats import NatsSender
from loadgen.clients.sampling import Sampling
from loadgen.records import Ending, Observation, Outcome
from loadgen.run import LoadRun, RunLimits
from loadgen.workload import LoadRequest
from tests.scripted_router import LossyLink, Script, ScriptedRouter

Build = Callable[..., LoadRequest]
THREE = ("a", "b", "c")


@asynccontextmanager
async def a_router(
    script: Script, link: LossyLink | None = None
) -> AsyncIterator[tuple[NatsSender, ScriptedRouter]]:
    hub = MemoryHub()
    router = ScriptedRouter(MemoryBus(hub), script_of=lambda _: script, link=link)
    sender = NatsSender(
        MemoryBus(hub),
        model="tide-tiny",
        run_name="run",
        sampling=Sampling(),
        streams_open_max=100,
        clock=SystemClock(),
    )
    async with router.serving(), sender:
        yield sender, router


def a_script(**changed: object) -> Script:
    given = {"texts": THREE, "finish_reason": FinishReason.LENGTH, "prompt_tokens": 2}
    return Script(**{**given, **changed})  # type: ignore[arg-type]


async def ending_of(script: Script, request: LoadRequest) -> Ending:
    async with a_router(script) as (sender, _):
        return await sender.send(request, Observation())


async def test_a_whole_answer_is_ok_and_its_tokens_are_timed(a_request: Build) -> None:
    seen = Observation()
    async with a_router(a_script()) as (sender, router):
        ending = await sender.send(a_request(index=7), seen)
    assert ending == Ending(outcome=Outcome.OK, finish_reason="length")
    assert len(seen.token_at_ns) == 3
    assert (seen.prompt_tokens, seen.output_tokens, seen.request_id) == (2, 3, "run-7")
    (submission,) = router.submissions
    assert submission.prompt_token_ids == (20, 21)
    assert submission.max_tokens == 3
    assert submission.ignore_eos


@pytest.mark.parametrize(
    ("changed", "outcome", "reason"),
    [
        ({"texts": ("a",)}, "broken", "too_few_tokens"),
        ({"texts": ("a", "b", "c", "d")}, "broken", "too_many_tokens"),
        ({"texts": ("a",), "finish_reason": FinishReason.STOP}, "broken", "too_few_tokens"),
        ({"prompt_tokens": 5}, "broken", "prompt_tokens"),
        ({"failure": FailReason.WORKERS_DIED}, "failed", "workers_died"),
        ({"rejection": RejectReason.INVALID}, "rejected", "invalid"),
        ({"rejection": RejectReason.OVERLOADED, "retry_after_ms": 50}, "rejected", "overloaded"),
    ],
)
async def test_an_answer_is_judged_by_what_came(
    a_request: Build, changed: dict[str, object], outcome: str, reason: str
) -> None:
    ending = await ending_of(a_script(**changed), a_request())
    assert (ending.outcome, ending.reason) == (outcome, reason)


async def test_a_request_that_is_none_is_rejected_without_being_sent(a_request: Build) -> None:
    ending = await ending_of(a_script(), a_request(prompt=""))
    assert (ending.outcome, ending.reason) == (Outcome.REJECTED, "invalid")


async def test_a_lossy_network_costs_no_token(a_request: Build) -> None:
    link = LossyLink(lost=0.1, doubled=0.2, overtaken=0.1, seed=3)
    async with a_router(a_script(), link) as (sender, _):
        run = LoadRun(sender, limits=RunLimits(), clock=SystemClock())
        result = await run.open_loop(a_request(index=index) for index in range(20))
    assert {record.ending.outcome for record in result.records} == {Outcome.OK}


async def test_a_stream_that_stalls_times_out_and_is_cancelled(a_request: Build) -> None:
    async with a_router(a_script(stalls_after=2)) as (sender, router):
        limits = RunLimits(request_timeout_ns=200 * NS_PER_MS)
        run = LoadRun(sender, limits=limits, clock=SystemClock())
        (record,) = (await run.open_loop([a_request()])).records
        async with asyncio.timeout(10):
            await router.cancelled("run-0")
    assert (record.ending.outcome, record.ending.reason) == (Outcome.FAILED, "timeout")
    assert record.output_tokens == 2
