"""The thin shell around a pure core: one mailbox, one consumer, effects as tasks.

    bus readers --accept (waits)--+
    own timers, outcomes --post---+--> mailbox --> core.handle --> commands --> interpret
                     ^                                                            v
                     +---------- exactly one outcome event ---------- effect (task), timer

Bounds and what happens at them:
- the mailbox: `accept` waits (back-pressure towards the bus), `offer` refuses and counts. `post`
  always succeeds: an outcome is never dropped, and there are no more of them than effects and
  timers, which have bounds of their own;
- effects in flight: one more fails at once with Unavailable;
- timers: one more is an InvariantViolation, for a core that leaks keys is broken.

No decision lives here: `interpret` matches on command types only.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterable, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar, cast

import structlog

from libs.kernel.core import Core, SetTimer, TimerFired, require
from libs.kernel.errors import ContractViolation, InvariantViolation, Unavailable
from libs.kernel.units import NS_PER_S, seconds
from libs.runtime.clock import Clock

MAILBOX_EVENTS_MAX: Final = 10_000
EFFECTS_MAX: Final = 10_000
TIMERS_MAX: Final = 100_000
STORY_EVENTS: Final = 64
"""The last events and commands, which a violated invariant is reported with."""
TURN_EVENTS: Final = 64
"""Events handled before the loop gets a turn: readers and effects must not starve."""
IDLE_CHECK_NS: Final = NS_PER_S
STOP_GRACE_NS: Final = 5 * NS_PER_S
RETRY_AFTER_NS: Final = NS_PER_S

EventT = TypeVar("EventT")
CommandT = TypeVar("CommandT")
ItemT = TypeVar("ItemT")

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect(Generic[EventT]):
    """Work that a command asked for, and how its failure is told to the core.

    The coroutine returns the outcome event, or None where the command promises none. It may run
    for at most `timeout_ns`. `failed` turns whatever it raised (Unavailable on time-out) into the
    outcome event; without it a failure is only counted and logged.
    """

    work: Callable[[], Awaitable[EventT | None]]
    failed: Callable[[Exception], EventT] | None = None
    timeout_ns: int | None = None


class ActorShell(Generic[EventT, CommandT]):
    """Runs one core until stopped. SetTimer and TimerFired it interprets itself."""

    def __init__(
        self,
        *,
        core: Core[EventT, CommandT],
        interpret: Callable[[CommandT], Effect[EventT] | None],
        clock: Clock,
        name: str,
        mailbox_events_max: int = MAILBOX_EVENTS_MAX,
        effects_max: int = EFFECTS_MAX,
    ) -> None:
        self._core = core
        self._interpret = interpret
        self._clock = clock
        self._name = name
        self._mailbox_events_max = mailbox_events_max
        self._effects_max = effects_max
        self._mailbox: deque[EventT] = deque()
        self._filled = asyncio.Event()
        self._room: deque[asyncio.Future[None]] = deque()
        self._effects: set[asyncio.Task[None]] = set()
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._story: deque[tuple[int, EventT, Sequence[CommandT]]] = deque(maxlen=STORY_EVENTS)
        self._violation: InvariantViolation | None = None
        self._is_stopping = False
        self.events_handled = 0
        self.events_refused = 0
        """Events that `offer` found no room for, and messages that could not be translated."""
        self.effects_failed = 0

    def post(self, event: EventT) -> None:
        """Add an event without waiting, whatever the bound; for outcomes and timers."""
        self._mailbox.append(event)
        self._filled.set()

    def offer(self, event: EventT) -> bool:
        """Add an event if there is room; otherwise refuse it, counted."""
        if len(self._mailbox) >= self._mailbox_events_max:
            self.events_refused += 1
            return False
        self.post(event)
        return True

    async def accept(self, event: EventT) -> None:
        """Add an event, waiting for room; for readers, so that the bus feels the pressure."""
        while len(self._mailbox) >= self._mailbox_events_max:
            room: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._room.append(room)
            await room
        self.post(event)

    async def feed(
        self, source: AsyncIterable[ItemT], translate: Callable[[ItemT], EventT | None]
    ) -> None:
        """Accept everything a source yields until it ends; what translates to None is skipped.

        A ContractViolation in `translate` is a peer's fault: counted, logged, passed over.
        """
        async for item in source:
            try:
                event = translate(item)
            except ContractViolation as violation:
                self.events_refused += 1
                _log.warning("message_refused", actor=self._name, reason=str(violation))
                continue
            if event is not None:
                await self.accept(event)

    async def run(self) -> None:
        """Handle events until `stop`, then those that are left and the effects' outcomes.

        Raises: InvariantViolation, after logging the story that led to it.
        """
        try:
            while not (self._is_stopping and not self._mailbox):
                await self._take_turn()
            await self._wind_up()
        except InvariantViolation:
            self._log_story()
            raise
        finally:
            self._release()

    def stop(self) -> None:
        """Let `run` return once the mailbox is empty and the effects have ended, or 5 s later."""
        self._is_stopping = True
        self._filled.set()

    def story(self) -> list[str]:
        """Return the last events, each with the commands that answered it, oldest first."""
        return [
            f"{at_ns} {event!r} -> {list(commands)!r}" for at_ns, event, commands in self._story
        ]

    async def _take_turn(self) -> None:
        for _ in range(min(TURN_EVENTS, len(self._mailbox))):
            self._handle(self._mailbox.popleft())
        while self._room and len(self._mailbox) < self._mailbox_events_max:
            self._wake_one()
            await asyncio.sleep(0)
        if self._mailbox:
            await asyncio.sleep(0)
            return
        if not self._is_stopping:
            await self._wait_idle()

    async def _wait_idle(self) -> None:
        self._filled.clear()
        self._raise_violation()
        try:
            async with asyncio.timeout(seconds(IDLE_CHECK_NS)):
                await self._filled.wait()
        except TimeoutError:
            self._core.check_invariants()

    def _handle(self, event: EventT) -> None:
        self._raise_violation()
        now_ns = self._clock.now_ns()
        commands: Sequence[CommandT] = ()
        try:
            commands = self._core.handle(event, now_ns=now_ns)
        finally:
            self._story.append((now_ns, event, commands))
        self.events_handled += 1
        for command in commands:
            if isinstance(command, SetTimer):
                self._set_timer(command)
            else:
                self._start(command)

    def _start(self, command: CommandT) -> None:
        effect = self._interpret(command)
        if effect is None:
            return
        if len(self._effects) >= self._effects_max:
            refusal = Unavailable(
                f"{self._name} has {self._effects_max} effects in flight",
                retry_after_ns=RETRY_AFTER_NS,
            )
            self._report_failure(command, effect, refusal)
            return
        task = asyncio.get_running_loop().create_task(self._perform(command, effect))
        self._effects.add(task)
        task.add_done_callback(self._effects.discard)

    async def _perform(self, command: CommandT, effect: Effect[EventT]) -> None:
        try:
            outcome = await _within(effect)
        except InvariantViolation as violation:
            self._violation = violation
            self._filled.set()
        except Exception as error:
            # The only place that catches everything: one effect's failure, whatever it is, is an
            # event for the core, and no reason to cancel the others.
            self._report_failure(command, effect, error)
        else:
            if outcome is not None:
                self.post(outcome)

    def _report_failure(self, command: CommandT, effect: Effect[EventT], error: Exception) -> None:
        self.effects_failed += 1
        _log.warning(
            "effect_failed",
            actor=self._name,
            command=type(command).__name__,
            error=str(error),
            error_type=type(error).__name__,
        )
        if effect.failed is not None:
            self.post(effect.failed(error))

    def _set_timer(self, timer: SetTimer) -> None:
        previous = self._timers.pop(timer.key, None)
        if previous is not None:
            previous.cancel()
        require(len(self._timers) < TIMERS_MAX, f"{self._name}: more than {TIMERS_MAX} timers")
        self._timers[timer.key] = asyncio.get_running_loop().call_later(
            seconds(timer.after_ns), self._fire, timer
        )

    def _fire(self, timer: SetTimer) -> None:
        del self._timers[timer.key]
        # A core that sets timers has TimerFired among its events.
        self.post(cast(EventT, TimerFired(key=timer.key, cause_id=timer.cause_id)))

    async def _wind_up(self) -> None:
        """Let effects end and handle what they report; cancel those that take too long."""
        deadline_ns = self._clock.now_ns() + STOP_GRACE_NS
        while self._effects and self._clock.now_ns() < deadline_ns:
            left_ns = deadline_ns - self._clock.now_ns()
            await asyncio.wait(
                self._effects, timeout=seconds(left_ns), return_when=asyncio.FIRST_COMPLETED
            )
            while self._mailbox:
                self._handle(self._mailbox.popleft())
        self._raise_violation()

    def _release(self) -> None:
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        for task in self._effects:
            task.cancel()
        while self._room:
            self._wake_one()

    def _wake_one(self) -> None:
        room = self._room.popleft()
        if not room.done():
            room.set_result(None)

    def _raise_violation(self) -> None:
        if self._violation is not None:
            raise self._violation

    def _log_story(self) -> None:
        _log.critical("actor_story", actor=self._name, story=self.story())


async def _within(effect: Effect[Any]) -> Any:
    """Run the effect's work within its time; a time-out is the world's failure."""
    if effect.timeout_ns is None:
        return await effect.work()
    try:
        async with asyncio.timeout(seconds(effect.timeout_ns)):
            return await effect.work()
    except TimeoutError:
        raise Unavailable(
            f"not done in {seconds(effect.timeout_ns):g} s", retry_after_ns=RETRY_AFTER_NS
        ) from None
