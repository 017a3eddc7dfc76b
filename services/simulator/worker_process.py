"""A worker in the simulated world: live core and scheduler, an engine of pure arithmetic."""

from typing import assert_never

from libs.contracts import subjects
from libs.engine.scheduler import Scheduler
from libs.engine.simulated_runner import SimulatedRunner, StepTimeModel
from libs.engine.steps import StepResult
from libs.kernel.core import SetTimer, TimerFired, require
from libs.runtime.bus import BusMessage
from libs.sim.broker import SimBroker
from libs.sim.process import SimProcess
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
    StepFinished,
    WorkerEvent,
    WorkerStarted,
)
from services.gpu_worker.options import WorkerOptions
from services.gpu_worker.wire import event_of, outgoing


class WorkerProcess(SimProcess):
    """Runs one WorkerCore; invariants are checked after every event."""

    def __init__(
        self, network: SimBroker, options: WorkerOptions, *, step_time: StepTimeModel
    ) -> None:
        super().__init__(network.world, name=options.worker_id)
        self.core = WorkerCore(options, Scheduler(options.engine))
        self._network = network
        self._step_time = step_time
        self._checkpoints = options.checkpoints
        self._runner = SimulatedRunner(
            vocabulary_size=options.vocabulary_size, eos_token_ids=options.engine.eos_token_ids
        )
        self._layers = options.engine.layers
        self._step: RunStep | None = None
        self._step_began_at_ns = 0
        network.subscribe(self, subjects.worker_control(options.worker_id), self._on_message)
        self.post(WorkerStarted(cause_id=options.worker_id))

    def post(self, event: WorkerEvent) -> None:
        """Let the core handle the event and carry out what it commands."""
        commands = self.core.handle(event, now_ns=self.world.now_ns)
        self.core.check_invariants()
        for command in commands:
            self._perform(command)

    def _on_message(self, message: BusMessage) -> None:
        self.post(event_of(message.payload))

    def _perform(self, command: WorkerCommand) -> None:
        match command:
            case RunStep():
                self._run_step(command)
            case StoreBlocks() | LoadBlocks():
                self._copy_blocks(command)
            case YieldStep():
                self._yield_step(command)
            case SendTokens() | SendToRouter() | PublishReport():
                out = outgoing(command)
                self._network.publish(self, BusMessage(subject=out.subject, payload=out.payload))
            case SetTimer():
                fired = TimerFired(key=command.key, cause_id=command.cause_id)
                self.set_timer(
                    command.key, after_ns=command.after_ns, action=lambda: self.post(fired)
                )
            case StopProcess():
                self.kill()
            case (
                AllocatePosition()
                | LoadPosition()
                | FormGroup()
                | CopyBlocks()
                | FreePosition()
                | BreakGroup()
                | AnswerMigrator()
                | AnswerPeer()
            ):
                require(False, f"a worker that serves alone is told of {command}")
            case _:
                assert_never(command)

    def _run_step(self, command: RunStep) -> None:
        self._step, self._step_began_at_ns = command, self.world.now_ns
        duration_ns = self._step_time.duration_ns(command.plan)
        self._finish_step(command, self._runner.run(command.plan), duration_ns=duration_ns)

    def _yield_step(self, command: YieldStep) -> None:
        """End the step at the next safepoint behind now, if it is still the one under way."""
        step = self._step
        if step is None or step.plan.step_id != command.step_id:
            return
        spacing, layers = step.plan.layers_between_safepoints, self._layers
        assert spacing is not None, "a step without safepoints is asked to yield"
        assert layers is not None
        whole_ns = self._step_time.duration_ns(step.plan)
        group_ns = max(1, whole_ns * spacing // layers)
        groups = (self.world.now_ns - self._step_began_at_ns) // group_ns + 1
        if groups * group_ns < whole_ns:
            given_up = StepResult(step_id=command.step_id, sampled=(), is_yielded=True)
            self._finish_step(step, given_up, duration_ns=groups * group_ns)

    def _finish_step(self, command: RunStep, result: StepResult, *, duration_ns: int) -> None:
        """Let the step end so long after it began, unless it has ended before."""
        finished = StepFinished(
            op_id=command.op_id, result=result, duration_ns=duration_ns, cause_id=command.cause_id
        )

        def end() -> None:
            if self._step is command:
                self._step = None
                self.post(finished)

        left_ns = self._step_began_at_ns + duration_ns - self.world.now_ns
        self.world.after(left_ns, lambda: self.deliver(end))

    def _copy_blocks(self, command: HostCommand) -> None:
        """Let a copy take as long as it is assumed to; a block has no content here."""
        checkpoints = self._checkpoints
        duration_ns = checkpoints.link_assumed.duration_ns(
            len(command.pairs) * checkpoints.room.block_bytes
        )
        outcome: WorkerEvent
        match command:
            case StoreBlocks():
                outcome = BlocksStored(
                    op_id=command.op_id, duration_ns=duration_ns, cause_id=command.cause_id
                )
            case LoadBlocks():
                outcome = BlocksLoaded(
                    op_id=command.op_id,
                    slots_corrupt=(),
                    duration_ns=duration_ns,
                    cause_id=command.cause_id,
                )
        self.world.after(duration_ns, lambda: self.deliver(lambda: self.post(outcome)))
