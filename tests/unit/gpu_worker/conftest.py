"""A worker core with a real scheduler and a simulated engine, under a clock that the test moves."""

from collections.abc import Callable
from typing import Any

import pytest

from libs.contracts.online import SamplingParameters
from libs.contracts.sessions import (
    AcknowledgeTokens,
    EndSession,
    RefuseReason,
    SessionRefused,
    SessionSpec,
    SessionStarted,
    StartSession,
    TokenReceipt,
)
from libs.contracts.token_step import SessionTokens, TokenStep
from libs.engine.scheduler import Scheduler, SchedulerOptions
from libs.engine.scheduling.coserve import CoserveOptions
from libs.engine.simulated_runner import SimulatedRunner, simulated_token
from libs.kernel.core import SetTimer, TimerFired
from libs.kernel.units import NS_PER_MS
from services.gpu_worker.admission import sequence_of
from services.gpu_worker.commands import (
    PublishReport,
    RunStep,
    SendTokens,
    SendToRouter,
    StopProcess,
    WorkerCommand,
)
from services.gpu_worker.core import WorkerCore
from services.gpu_worker.events import (
    AcknowledgeReceived,
    EndReceived,
    StartReceived,
    StepFailed,
    StepFinished,
    WorkerEvent,
    WorkerStarted,
)
from services.gpu_worker.options import WorkerOptions

EOS = 0


class Worker:
    """Interprets the core's commands; what it sends is kept in `sent` until taken."""

    def __init__(self, **changes: Any) -> None:
        engine = SchedulerOptions(
            step_tokens_max=64,
            sequences_max=8,
            block_tokens=4,
            blocks_total=changes.pop("blocks_total", 64),
            context_tokens_max=changes.pop("context_tokens_max", 128),
            eos_token_ids=frozenset({EOS}),
            layers=changes.pop("layers", None),
            coserve=changes.pop("coserve", CoserveOptions()),
        )
        self.options = WorkerOptions(
            worker_id="worker-a",
            alias="tide",
            process_id=7,
            vocabulary_size=1000,
            engine=engine,
            **changes,
        )
        self.core = WorkerCore(self.options, Scheduler(engine))
        self.runner = SimulatedRunner(vocabulary_size=1000, eos_token_ids=frozenset({EOS}))
        self.now_ns = 0
        self.timers: dict[str, int] = {}
        self.step: RunStep | None = None
        self.stopped: StopProcess | None = None
        self.sent: list[WorkerCommand] = []
        self.handle(WorkerStarted(cause_id="start"))

    @property
    def exit_code(self) -> int | None:
        return None if self.stopped is None else self.stopped.exit_code

    def handle(self, event: WorkerEvent) -> list[WorkerCommand]:
        commands = self.core.handle(event, now_ns=self.now_ns)
        self.core.check_invariants()
        for command in commands:
            match command:
                case RunStep():
                    assert self.step is None, "two steps in flight"
                    self.step = command
                case SetTimer(key=key, after_ns=after_ns):
                    self.timers[key] = self.now_ns + after_ns
                case StopProcess():
                    self.stopped = command
                case SendTokens() | SendToRouter() | PublishReport():
                    self.sent.append(command)
        return commands

    def starting(self, request_id: str, **changes: Any) -> list[WorkerCommand]:
        """Start a session; return what the worker does about it."""
        message = build_start(request_id, **changes)
        return self.handle(StartReceived(message=message, cause_id=request_id))

    def start(self, request_id: str = "r", **changes: Any) -> None:
        self.starting(request_id, **changes)

    def acknowledge(
        self, request_id: str = "r", *, next_index: int, epoch: int = 1, **changes: Any
    ) -> None:
        receipt = TokenReceipt(
            request_id=request_id,
            session_epoch=epoch,
            next_index=next_index,
            is_resend_wanted=changes.pop("is_resend_wanted", False),
        )
        message = AcknowledgeTokens(
            router_id=changes.pop("router_id", "router-a"), receipts=(receipt,)
        )
        assert not changes
        self.handle(AcknowledgeReceived(message=message, cause_id=request_id))

    def end(self, request_id: str = "r", *, epoch: int = 1) -> None:
        message = EndSession(request_id=request_id, session_epoch=epoch)
        self.handle(EndReceived(message=message, cause_id=request_id))

    def finish_step(self) -> None:
        step, self.step = self.step, None
        assert step is not None, "no step is in flight"
        result = self.runner.run(step.plan)
        self.handle(
            StepFinished(
                op_id=step.op_id, result=result, duration_ns=NS_PER_MS, cause_id=step.cause_id
            )
        )

    def fail_step(self, reason: str = "boom") -> None:
        step, self.step = self.step, None
        assert step is not None
        self.handle(
            StepFailed(
                op_id=step.op_id,
                replica_id=step.replica_id,
                reason=reason,
                cause_id=step.cause_id,
            )
        )

    def finish_steps(self, steps: int) -> None:
        for _ in range(steps):
            self.finish_step()

    def advance(self, duration_ms: int) -> None:
        """Let time pass with its timers, in order; no step finishes."""
        end_ns = self.now_ns + duration_ms * NS_PER_MS
        while due := [(at, key) for key, at in self.timers.items() if at <= end_ns]:
            self.now_ns, key = min(due)
            del self.timers[key]
            self.handle(TimerFired(key=key, cause_id="timer"))
        self.now_ns = end_ns

    def take_tokens(self) -> list[tuple[str, TokenStep]]:
        taken = [(c.router_id, c.step) for c in self.sent if isinstance(c, SendTokens)]
        self.sent = [c for c in self.sent if not isinstance(c, SendTokens)]
        return taken

    def take_entries(self) -> list[SessionTokens]:
        return [entry for _, step in self.take_tokens() for entry in step.entries]

    def take_answers(self) -> list[tuple[str, SessionStarted | SessionRefused]]:
        taken = [(c.router_id, c.message) for c in self.sent if isinstance(c, SendToRouter)]
        self.sent = [c for c in self.sent if not isinstance(c, SendToRouter)]
        return taken

    def take_refusals(self) -> list[tuple[str, int, RefuseReason]]:
        return [
            (answer.request_id, answer.session_epoch, answer.reason)
            for _, answer in self.take_answers()
            if isinstance(answer, SessionRefused)
        ]

    def take_reports(self) -> list[Any]:
        taken = [c.report for c in self.sent if isinstance(c, PublishReport)]
        self.sent = [c for c in self.sent if not isinstance(c, PublishReport)]
        return taken

    def undisturbed(self, start: StartSession, count: int) -> tuple[int, ...]:
        """The first tokens of a run that nothing disturbs."""
        request = sequence_of(start, sequence_id="reference")
        vocabulary = self.options.vocabulary_size
        return tuple(
            simulated_token(request, index=i, vocabulary_size=vocabulary) for i in range(count)
        )

    def report(self) -> Any:
        """The next periodic report."""
        self.take_reports()
        self.advance(200)
        return self.take_reports()[-1]


def build_start(request_id: str = "r", **changes: Any) -> StartSession:
    epoch = changes.pop("epoch", 1)
    router_id = changes.pop("router_id", "router-a")
    generated = changes.pop("generated", ())
    spec = {
        "alias": "tide",
        "prompt_token_ids": (1, 2, 3, 4, 5),
        "max_tokens": 8,
        "sampling": SamplingParameters(temperature=0.0),
        "ignore_eos": True,
    }
    return StartSession(
        router_id=router_id,
        session_epoch=epoch,
        spec=SessionSpec.model_validate({"request_id": request_id, **spec, **changes}),
        generated_token_ids=generated,
    )


@pytest.fixture
def a_worker() -> Callable[..., Worker]:
    """Build a started worker; keyword arguments change its options."""
    return Worker


@pytest.fixture
def a_start() -> Callable[..., StartSession]:
    """Build a StartSession; keyword arguments change it or its spec."""
    return build_start
