"""An open loop never waits for answers, a closed loop always does, and both keep their bounds."""

import asyncio
from collections.abc import Callable, Iterator

import pytest

from libs.kernel.errors import ConfigError
from libs.kernel.units import NS_PER_MS, NS_PER_S
from libs.runtime.clock import SystemClock
from loadgen.records import Ending, Observation, Outcome
from loadgen.run import LoadRun, RunLimits
from loadgen.workload import LoadRequest

OK = Ending(outcome=Outcome.OK, finish_reason="length")


class HeldSender:
    """Answers nothing until it is told to; counts what is open."""

    def __init__(self) -> None:
        self.released = asyncio.Event()
        self.open_now = 0
        self.open_most = 0
        self.indices: list[int] = []
        self.on_send: Callable[[], None] = lambda: None

    async def send(self, request: LoadRequest, seen: Observation) -> Ending:
        self.indices.append(request.index)
        self.open_now += 1
        self.open_most = max(self.open_most, self.open_now)
        self.on_send()
        seen.see_tokens(2, now_ns=SystemClock().now_ns())
        try:
            await self.released.wait()
        finally:
            self.open_now -= 1
        seen.output_tokens = 2
        return OK


def some_requests(count: int, *, every_ns: int = 0) -> Iterator[LoadRequest]:
    for index in range(count):
        yield LoadRequest(
            index=index, arrival_ns=index * every_ns, prompt=(1, 2), output_tokens=2, seed=index
        )


def a_run(sender: HeldSender, **limits: int) -> LoadRun:
    return LoadRun(sender, limits=RunLimits(**limits), clock=SystemClock())


async def test_an_open_loop_sends_on_time_although_nothing_is_answered() -> None:
    sender = HeldSender()

    def release_last() -> None:
        if len(sender.indices) == 50:
            sender.released.set()

    sender.on_send = release_last
    result = await a_run(sender).open_loop(some_requests(50, every_ns=NS_PER_MS))
    assert sender.indices == list(range(50))
    assert result.streams_open_most == 50
    assert sorted(record.planned_at_ns for record in result.records) == [
        index * NS_PER_MS for index in range(50)
    ]
    assert all(record.lateness_ns >= 0 for record in result.records)
    assert result.duration_ns >= 49 * NS_PER_MS


async def test_a_generator_that_falls_behind_says_how_late_each_request_was() -> None:
    sender = HeldSender()
    sender.released.set()

    def slow_requests() -> Iterator[LoadRequest]:
        for request in some_requests(3):
            started_at_ns = SystemClock().now_ns()
            while SystemClock().now_ns() < started_at_ns + 5 * NS_PER_MS:
                pass  # A prompt that takes long to make.
            yield request

    result = await a_run(sender).open_loop(slow_requests())
    lateness = [record.lateness_ns for record in result.records]
    assert lateness == sorted(lateness)
    assert lateness[2] >= 15 * NS_PER_MS


async def test_an_open_loop_counts_what_it_could_not_send_and_does_not_wait() -> None:
    sender = HeldSender()
    run = a_run(sender, streams_open_max=3)
    running = asyncio.create_task(run.open_loop(some_requests(10)))
    while run.result.requests_unsent < 7:
        await asyncio.sleep(0)
    sender.released.set()
    result = await running
    assert (len(result.records), result.requests_unsent, sender.open_most) == (3, 7, 3)


async def test_a_closed_loop_keeps_exactly_its_users_busy() -> None:
    sender = HeldSender()
    run = a_run(sender)
    running = asyncio.create_task(run.closed_loop(some_requests(10), users=4))
    while sender.open_now < 4:
        await asyncio.sleep(0)
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(sender.indices) == 4
    sender.released.set()
    result = await running
    assert sorted(sender.indices) == list(range(10))
    assert sender.open_most == 4
    assert all(record.lateness_ns < NS_PER_S for record in result.records)


async def test_no_more_is_sent_than_was_allowed() -> None:
    sender = HeldSender()
    sender.released.set()
    assert len((await a_run(sender, requests_max=5).open_loop(some_requests(99))).records) == 5
    run = a_run(sender, requests_max=5)
    assert len((await run.closed_loop(some_requests(99), users=3)).records) == 5


async def test_an_open_loop_ends_sending_after_its_duration() -> None:
    sender = HeldSender()
    sender.released.set()
    run = a_run(sender, duration_ns=5 * NS_PER_MS)
    result = await run.open_loop(some_requests(10**6, every_ns=NS_PER_MS))
    assert [record.index for record in result.records] == [0, 1, 2, 3, 4]


async def test_a_closed_loop_ends_sending_after_its_duration() -> None:
    sender = HeldSender()
    sender.released.set()
    run = a_run(sender, duration_ns=20 * NS_PER_MS, requests_max=10**6)
    result = await run.closed_loop(some_requests(10**9), users=2, think_ns=5 * NS_PER_MS)
    assert 2 <= len(result.records) <= 10


async def test_a_request_that_does_not_end_has_failed_and_is_let_go() -> None:
    sender = HeldSender()
    result = await a_run(sender, request_timeout_ns=NS_PER_MS).open_loop(some_requests(1))
    (record,) = result.records
    assert (record.ending.outcome, record.ending.reason) == (Outcome.FAILED, "timeout")
    assert record.output_tokens == 2
    assert sender.open_now == 0


async def test_a_stopped_run_waits_for_what_is_open_and_says_that_it_was_stopped() -> None:
    sender = HeldSender()
    run = a_run(sender)
    running = asyncio.create_task(run.open_loop(some_requests(9, every_ns=3600 * NS_PER_S)))
    while not sender.indices:
        await asyncio.sleep(0)
    run.stop()
    sender.released.set()
    result = await running
    assert len(result.records) == 1
    assert result.is_interrupted


async def test_instants_count_from_the_start_of_the_run() -> None:
    sender = HeldSender()
    sender.released.set()
    (record,) = (await a_run(sender).open_loop(some_requests(1))).records
    assert 0 <= record.sent_at_ns <= record.token_at_ns[0] <= record.ended_at_ns < 60 * NS_PER_S


async def test_a_bug_of_a_sender_ends_the_run() -> None:
    class Wrong:
        async def send(self, request: LoadRequest, seen: Observation) -> Ending:
            raise KeyError("a bug")

    run = LoadRun(Wrong(), limits=RunLimits(), clock=SystemClock())
    with pytest.raises(ExceptionGroup):
        await run.open_loop(some_requests(3))


@pytest.mark.parametrize("users", [None, 2])
async def test_a_trace_that_turns_out_wrong_is_told_after_what_was_sent_has_ended(
    users: int | None,
) -> None:
    def wrong_later() -> Iterator[LoadRequest]:
        yield from some_requests(3)
        raise ConfigError("trace:4: wrong")

    sender = HeldSender()
    sender.released.set()
    run = a_run(sender)
    loop = (
        run.open_loop(wrong_later())
        if users is None
        else run.closed_loop(wrong_later(), users=users)
    )
    with pytest.raises(ConfigError, match="trace:4"):
        await loop
    assert len(run.result.records) == 3


@pytest.mark.parametrize(
    "limits",
    [
        {"requests_max": 0},
        {"duration_ns": 0},
        {"streams_open_max": 0},
        {"streams_open_max": 10**9},
        {"request_timeout_ns": 0},
    ],
)
def test_limits_that_are_none_are_refused(limits: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        RunLimits(**limits)


async def test_more_users_than_streams_are_refused() -> None:
    with pytest.raises(ConfigError, match="users"):
        await a_run(HeldSender(), streams_open_max=2).closed_loop(some_requests(1), users=3)
