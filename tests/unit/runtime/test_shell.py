"""The shell around a core that the test scripts."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest

from libs.kernel.core import SetTimer, TimerFired, require
from libs.kernel.errors import ContractViolation, InvariantViolation, Unavailable
from libs.kernel.units import NS_PER_MS, NS_PER_S
from libs.runtime.clock import SystemClock
from libs.runtime.shell import ActorShell, Effect


@dataclass(frozen=True)
class Asked:
    number: int


@dataclass(frozen=True)
class Done:
    number: int


@dataclass(frozen=True)
class Failed:
    reason: str


@dataclass(frozen=True)
class Work:
    number: int


Event = Asked | Done | Failed | TimerFired
Command = Work | SetTimer


@dataclass
class ScriptedCore:
    """Answers each event with what the script says; remembers the events."""

    script: Callable[[Event], Sequence[Command]] = lambda event: ()
    events: list[Event] = field(default_factory=list)
    checks: int = 0

    def handle(self, event: Event, *, now_ns: int) -> Sequence[Command]:
        require(now_ns > 0, "time must be given")
        self.events.append(event)
        return self.script(event)

    def check_invariants(self) -> None:
        self.checks += 1


def work_for_asked(event: Event) -> Sequence[Command]:
    return [Work(event.number)] if isinstance(event, Asked) else []


def a_shell(
    core: ScriptedCore,
    work: Callable[[int], object] | None = None,
    *,
    effect_timeout_ns: int = 60 * NS_PER_S,
    **options: int,
) -> ActorShell[Event, Command]:
    """A shell whose effects run `work` and report Done, or Failed with the reason."""

    def interpret(command: Command) -> Effect[Event] | None:
        if work is None or not isinstance(command, Work):
            return None

        async def perform() -> Event:
            await work(command.number)
            return Done(command.number)

        return Effect(
            work=perform,
            failed=lambda error: Failed(f"{type(error).__name__}: {error}"),
            timeout_ns=effect_timeout_ns,
        )

    return ActorShell(
        core=core, interpret=interpret, clock=SystemClock(), name="scripted", **options
    )


async def run_until_stopped(shell: ActorShell[Event, Command], *events: Event) -> None:
    for event in events:
        shell.post(event)
    shell.stop()
    async with asyncio.timeout(5):
        await shell.run()


def test_every_effect_ends_in_exactly_one_outcome_whatever_it_does():
    async def work(number: int) -> None:
        if number == 1:
            raise ValueError("broken")
        if number == 2:
            raise Unavailable("away", retry_after_ns=1)
        if number == 3:
            await asyncio.sleep(60)

    core = ScriptedCore(work_for_asked)
    shell = a_shell(core, work, effect_timeout_ns=50 * NS_PER_MS)
    asyncio.run(run_until_stopped(shell, *(Asked(number) for number in range(5))))
    outcomes = [event for event in core.events if not isinstance(event, Asked)]
    assert sorted(map(repr, outcomes)) == sorted(
        map(
            repr,
            [
                Done(0),
                Failed("ValueError: broken"),
                Failed("Unavailable: away"),
                Failed("Unavailable: not done in 0.05 s"),
                Done(4),
            ],
        )
    )
    assert shell.effects_failed == 3


def test_one_effects_failure_cancels_no_other():
    async def scenario() -> None:
        gate = asyncio.Event()

        async def work(number: int) -> None:
            if number == 0:
                gate.set()
                raise RuntimeError
            await gate.wait()

        core = ScriptedCore(work_for_asked)
        await run_until_stopped(a_shell(core, work), Asked(1), Asked(0))
        assert Done(1) in core.events

    asyncio.run(scenario())


def test_an_effect_beyond_the_bound_fails_at_once():
    async def scenario() -> None:
        gate = asyncio.Event()

        async def work(number: int) -> None:
            await gate.wait()

        core = ScriptedCore(work_for_asked)
        shell = a_shell(core, work, effects_max=2)
        running = asyncio.create_task(shell.run())
        for number in range(3):
            shell.post(Asked(number))
        while not any(isinstance(event, Failed) for event in core.events):
            await asyncio.sleep(0)
        assert [event for event in core.events if isinstance(event, Done)] == []
        gate.set()
        shell.stop()
        await running
        assert [event for event in core.events if isinstance(event, Done)] == [Done(0), Done(1)]

    asyncio.run(scenario())


def test_a_timer_of_the_same_key_replaces_the_earlier_one():
    async def scenario() -> None:
        def script(event: Event) -> Sequence[Command]:
            if isinstance(event, Asked):
                after_ns = event.number * NS_PER_MS
                return [SetTimer(key="k", after_ns=after_ns, cause_id=str(event.number))]
            shell.stop()
            return []

        core = ScriptedCore(script)
        shell = a_shell(core)
        shell.post(Asked(1))
        shell.post(Asked(60_000))
        shell.post(Asked(5))
        async with asyncio.timeout(5):
            await shell.run()
        assert core.events[3:] == [TimerFired(key="k", cause_id="5")]

    asyncio.run(scenario())


def test_a_full_mailbox_makes_readers_wait_and_offers_fail_but_takes_outcomes():
    async def scenario() -> None:
        core = ScriptedCore()
        shell = a_shell(core, mailbox_events_max=2)
        assert shell.offer(Asked(0))
        assert shell.offer(Asked(1))
        assert not shell.offer(Asked(2))
        waiting = asyncio.create_task(shell.accept(Asked(3)))
        await asyncio.sleep(0)
        assert not waiting.done()
        shell.post(Done(4))
        assert shell.events_refused == 1
        running = asyncio.create_task(shell.run())
        await waiting
        shell.stop()
        await running
        assert core.events == [Asked(0), Asked(1), Done(4), Asked(3)]

    asyncio.run(scenario())


def test_a_stream_of_messages_is_fed_with_back_pressure_and_bad_ones_are_passed_over():
    async def scenario() -> None:
        async def source():
            for number in range(100):
                yield number

        def translate(number: int) -> Event | None:
            if number == 13:
                raise ContractViolation("unlucky")
            return None if number == 14 else Asked(number)

        core = ScriptedCore()
        shell = a_shell(core, mailbox_events_max=3)
        running = asyncio.create_task(shell.run())
        await shell.feed(source(), translate)
        shell.stop()
        await running
        assert core.events == [Asked(number) for number in range(100) if number not in (13, 14)]
        assert shell.events_refused == 1

    asyncio.run(scenario())


def test_a_violated_invariant_ends_the_run_and_the_story_tells_why():
    def script(event: Event) -> Sequence[Command]:
        require(not isinstance(event, Done), "nothing is ever done")
        return work_for_asked(event)

    async def work(number: int) -> None:
        return None

    core = ScriptedCore(script)
    shell = a_shell(core, work)
    with pytest.raises(InvariantViolation, match="nothing is ever done"):
        asyncio.run(run_until_stopped(shell, Asked(7)))
    assert len(shell.story()) == 2
    assert "Asked(number=7)" in shell.story()[0]
    assert "Work(number=7)" in shell.story()[0]
    assert "Done(number=7)" in shell.story()[1]


def test_an_invariant_violated_in_an_effect_ends_the_run_too():
    async def work(number: int) -> None:
        raise InvariantViolation("broken port")

    async def scenario() -> None:
        shell = a_shell(ScriptedCore(work_for_asked), work)
        shell.post(Asked(1))
        async with asyncio.timeout(5):
            await shell.run()

    with pytest.raises(InvariantViolation, match="broken port"):
        asyncio.run(scenario())


def test_stopping_handles_what_is_left_and_waits_for_outcomes():
    async def work(number: int) -> None:
        await asyncio.sleep(0.01)

    core = ScriptedCore(work_for_asked)
    asyncio.run(run_until_stopped(a_shell(core, work), *(Asked(number) for number in range(200))))
    assert sum(isinstance(event, Done) for event in core.events) == 200


def test_a_busy_mailbox_lets_the_loop_turn():
    async def scenario() -> None:
        core = ScriptedCore()
        shell = a_shell(core)
        for number in range(1000):
            shell.post(Asked(number))
        running = asyncio.create_task(shell.run())
        turns = 0
        while len(core.events) < 1000:
            await asyncio.sleep(0)
            turns += 1
        assert turns >= 1000 // 64
        shell.stop()
        await running

    asyncio.run(scenario())
