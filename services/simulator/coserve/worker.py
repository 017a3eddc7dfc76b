"""The live worker core in virtual time, alone, on a device of pure arithmetic.

    router --StartSession, receipts--> WorkerCore --RunStep------------> ends after the step's time
                                                  --YieldStep----------> ends at the next safepoint
                                                  --StoreBlocks, Load--> one after another on a link
                                                  --SendTokens---------> router

What is computed, stored, brought back and given up is what the core commands; only how long it
takes is simulated. A token says nothing, so its id is always the same.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, assert_never

from libs.contracts.sessions import SessionRefused
from libs.contracts.token_step import TokenStep
from libs.engine.scheduler import Scheduler
from libs.engine.steps import SampledToken, StepResult
from libs.kernel.core import SetTimer, TimerFired, require
from libs.sim.process import SimProcess
from libs.sim.world import World
from services.gpu_worker.commands import (
    AllocatePosition,
    AnswerMigrator,
    AnswerPeer,
    BreakGroup,
    CopyBlocks,
    FormGroup,
    FreePosition,
    HostCommand,
    LoadBlocks,
    LoadPosition,
    PublishReport,
    RunStep,
    SendTokens,
    SendToRouter,
    StopProcess,
    StoreBlocks,
    WorkerCommand,
    YieldStep,
)
from services.gpu_worker.core import WorkerCore
from services.gpu_worker.events import (
    BlocksLoaded,
    BlocksStored,
    HostEvent,
    StepFinished,
    WorkerEvent,
    WorkerStarted,
)
from services.gpu_worker.options import WorkerOptions
from services.simulator.coserve.device import Device

TOKEN_ID: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSpan:
    """When a step ran, and for whom."""

    began_at_ns: int
    ended_at_ns: int
    online_ns: int
    """Of its time, what its online part takes alone; the rest is what offline work adds."""

    @property
    def offline_ns(self) -> int:
        """What offline work takes of it: all where nobody is online."""
        return self.ended_at_ns - self.began_at_ns - self.online_ns


@dataclass(slots=True, kw_only=True)
class _StepUnderWay:
    command: RunStep
    began_at_ns: int
    duration_ns: int


class CoserveWorker(SimProcess):
    """Runs one WorkerCore that serves the whole model."""

    def __init__(
        self,
        world: World,
        options: WorkerOptions,
        *,
        device: Device,
        on_tokens: Callable[[TokenStep], None],
        checks_invariants: bool = False,
    ) -> None:
        super().__init__(world, name=options.worker_id)
        self.core = WorkerCore(options, Scheduler(options.engine))
        self.busy_ns = 0
        """Of the engine, in steps that have ended."""
        self.steps: list[StepSpan] = []
        """All that have ended, in that order."""
        self.copying_ns = 0
        """Of the link, in copies that were begun."""
        self._device = device
        self._on_tokens = on_tokens
        self._checks_invariants = checks_invariants
        self._block_bytes = options.checkpoints.room.block_bytes
        self._noise = world.rng.child("step times")
        self._step: _StepUnderWay | None = None
        self._samples: dict[str, SampledToken] = {}
        self._offline: set[str] = set()
        """Sequences that were opened and not closed; for membership only."""
        self._link_free_at_ns = 0

    def start(self) -> None:
        """Begin to serve."""
        self.post(WorkerStarted(cause_id=self.name))

    def post(self, event: WorkerEvent) -> None:
        """Let the core handle the event, and carry out what it commands."""
        commands = self.core.handle(event, now_ns=self.world.now_ns)
        if self._checks_invariants:
            self.core.check_invariants()
        for command in commands:
            self._perform(command)

    def _perform(self, command: WorkerCommand) -> None:
        match command:
            case RunStep():
                self._begin_step(command)
            case YieldStep():
                self._yield_step(command)
            case StoreBlocks() | LoadBlocks():
                self._copy_blocks(command)
            case SendTokens(step=step):
                # Later, not now: what it leads to is an event of its own.
                self.world.after(0, lambda: self._on_tokens(step))
            case SetTimer():
                fired = TimerFired(key=command.key, cause_id=command.cause_id)
                self.set_timer(
                    command.key, after_ns=command.after_ns, action=lambda: self.post(fired)
                )
            case SendToRouter(message=SessionRefused() as refusal):
                require(False, f"{refusal.request_id} was refused: {refusal.message}")
            case SendToRouter() | PublishReport():
                pass
            case (
                AllocatePosition()
                | LoadPosition()
                | FormGroup()
                | CopyBlocks()
                | FreePosition()
                | BreakGroup()
                | AnswerMigrator()
                | AnswerPeer()
                | StopProcess()
            ):
                require(False, f"a worker that serves alone is told of {command}")
            case _:
                assert_never(command)

    # ------------------------------------------------------------------ steps

    def _begin_step(self, command: RunStep) -> None:
        opened = command.plan.opened
        self._offline.update(each.sequence_id for each in opened if each.is_offline)
        step = _StepUnderWay(
            command=command,
            began_at_ns=self.world.now_ns,
            duration_ns=self._device.duration_ns(command.plan, noise=self._noise),
        )
        self._step = step
        self._end_step_after(step, step.duration_ns, is_yielded=False)

    def _yield_step(self, command: YieldStep) -> None:
        """End the step at the next safepoint behind now, if it is still the one under way."""
        step = self._step
        if step is None or step.command.plan.step_id != command.step_id:
            return
        spacing = step.command.plan.layers_between_safepoints
        assert spacing is not None, "a step without safepoints is asked to yield"
        group_ns = max(1, step.duration_ns * spacing // self._device.layers)
        groups = (self.world.now_ns - step.began_at_ns) // group_ns + 1
        if groups * group_ns < step.duration_ns:
            self._end_step_after(step, groups * group_ns, is_yielded=True)

    def _end_step_after(self, step: _StepUnderWay, duration_ns: int, *, is_yielded: bool) -> None:
        """Let the step end so long after it began, unless it has ended before."""

        def end() -> None:
            if self._step is step:
                self._end_step(step, duration_ns, is_yielded=is_yielded)

        self.world.after(step.began_at_ns + duration_ns - self.world.now_ns, end)

    def _end_step(self, step: _StepUnderWay, duration_ns: int, *, is_yielded: bool) -> None:
        self._step = None
        self.busy_ns += duration_ns
        command, plan = step.command, step.command.plan
        self.steps.append(self._span(step, duration_ns))
        self._offline.difference_update(plan.closed)
        self.world.note(f"step {plan.step_id}: {len(plan.entries)} yielded {is_yielded}")
        for sequence_id in plan.closed:
            self._samples.pop(sequence_id, None)
        sampled = (
            ()
            if is_yielded
            else tuple(
                self._sample(entry.sequence_id) for entry in plan.entries if entry.is_sampling
            )
        )
        result = StepResult(step_id=plan.step_id, sampled=sampled, is_yielded=is_yielded)
        self.post(
            StepFinished(
                op_id=command.op_id,
                result=result,
                duration_ns=duration_ns,
                cause_id=command.cause_id,
            )
        )

    def _span(self, step: _StepUnderWay, duration_ns: int) -> StepSpan:
        entries = step.command.plan.entries
        online = [entry for entry in entries if entry.sequence_id not in self._offline]
        share = self._device.share_of(online, entries) if online else 0.0
        return StepSpan(
            began_at_ns=step.began_at_ns,
            ended_at_ns=step.began_at_ns + duration_ns,
            online_ns=round(duration_ns * share),
        )

    def _sample(self, sequence_id: str) -> SampledToken:
        token = self._samples.get(sequence_id)
        if token is None:
            token = SampledToken(
                sequence_id=sequence_id,
                token_id=TOKEN_ID,
                text="",
                text_if_last="",
                is_stop_matched=False,
            )
            self._samples[sequence_id] = token
        return token

    # ------------------------------------------------------------------ copies

    def _copy_blocks(self, command: HostCommand) -> None:
        """Let the copy wait for those before it, then take the time of its bytes."""
        now_ns = self.world.now_ns
        copy_ns = self._device.link.duration_ns(len(command.pairs) * self._block_bytes)
        self._link_free_at_ns = max(now_ns, self._link_free_at_ns) + copy_ns
        self.copying_ns += copy_ns
        # As the worker measures it: from the command to its end, waiting included.
        duration_ns = self._link_free_at_ns - now_ns
        outcome = _outcome(command, duration_ns=duration_ns)
        self.world.after(duration_ns, lambda: self.post(outcome))


def _outcome(command: HostCommand, *, duration_ns: int) -> HostEvent:
    match command:
        case StoreBlocks():
            return BlocksStored(
                op_id=command.op_id, duration_ns=duration_ns, cause_id=command.cause_id
            )
        case LoadBlocks():
            return BlocksLoaded(
                op_id=command.op_id,
                slots_corrupt=(),
                duration_ns=duration_ns,
                cause_id=command.cause_id,
            )
        case _:
            assert_never(command)
