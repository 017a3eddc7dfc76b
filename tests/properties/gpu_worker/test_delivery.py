"""Whatever the network does to the messages between routers and a worker, every session ends with
exactly the tokens of an undisturbed run."""

from dataclasses import dataclass, field
from typing import Literal, get_args

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from libs.contracts.online import FinishReason, SamplingParameters
from libs.contracts.sessions import (
    AcknowledgeTokens,
    EndSession,
    SessionRefused,
    SessionSpec,
    SessionStarted,
    StartSession,
    TokenReceipt,
)
from libs.contracts.token_step import SessionTokens, TokenStep
from libs.engine.scheduler import Scheduler, SchedulerOptions
from libs.engine.simulated_runner import SimulatedRunner, simulated_logprobs, simulated_tokens
from libs.kernel.core import SetTimer, TimerFired
from libs.kernel.units import NS_PER_MS
from services.gpu_worker.admission import sequence_of
from services.gpu_worker.commands import (
    PublishReport,
    RunStep,
    SendTokens,
    SendToRouter,
    StopProcess,
)
from services.gpu_worker.core import WorkerCore
from services.gpu_worker.events import (
    AcknowledgeReceived,
    EndReceived,
    StartReceived,
    StepFinished,
    WorkerEvent,
    WorkerStarted,
)
from services.gpu_worker.options import WorkerOptions

VOCABULARY = 40
EOS = frozenset({0})
ENGINE = SchedulerOptions(
    step_tokens_max=8,
    sequences_max=3,
    block_tokens=2,
    blocks_total=20,
    context_tokens_max=32,
    eos_token_ids=EOS,
)
OPTIONS = WorkerOptions(
    worker_id="worker-a",
    alias="tide",
    process_id=1,
    vocabulary_size=VOCABULARY,
    engine=ENGINE,
    message_bytes_max=400,
    resend_tokens_max=5,
)
ROUNDS_TO_HEAL_MAX = 400

Message = (
    StartSession | AcknowledgeTokens | EndSession | SessionStarted | SessionRefused | TokenStep
)
Action = Literal[
    "start", "take_over", "elsewhere", "end", "end_older", "probe",
    "deliver", "double", "drop", "step", "pass_time",
]  # fmt: skip
ACTIONS: tuple[Action, ...] = get_args(Action)


@dataclass(kw_only=True)
class Owner:
    """What the routers of one request know: its epoch and its journal."""

    spec: SessionSpec
    undisturbed: tuple[int, ...]
    epoch: int = 1
    journal: list[int] = field(default_factory=list)
    is_started: bool = False
    finish_reason: FinishReason | None = None

    @property
    def router_id(self) -> str:
        return f"router-{self.epoch}"

    def start(self) -> StartSession:
        return StartSession(
            router_id=self.router_id,
            session_epoch=self.epoch,
            spec=self.spec,
            generated_token_ids=tuple(self.journal),
        )

    def start_anew(self) -> StartSession:
        self.epoch += 1
        self.is_started = False
        return self.start()

    def receipt(self, *, is_resend_wanted: bool = False) -> AcknowledgeTokens:
        receipt = TokenReceipt(
            request_id=self.spec.request_id,
            session_epoch=self.epoch,
            next_index=len(self.journal),
            is_resend_wanted=is_resend_wanted,
        )
        return AcknowledgeTokens(router_id=self.router_id, receipts=(receipt,))

    def end(self, epoch: int) -> EndSession:
        return EndSession(request_id=self.spec.request_id, session_epoch=epoch)

    def take(self, entry: SessionTokens) -> Message:
        if entry.session_epoch != self.epoch:
            return self.end(entry.session_epoch)
        best = self.spec.sampling.logprobs
        scores = (
            ()
            if best is None
            else tuple(
                simulated_logprobs(token_id, best=best, vocabulary_size=VOCABULARY)
                for token_id in entry.token_ids
            )
        )
        assert entry.logprobs == scores, "log probabilities are lost or changed"
        known = len(self.journal) - entry.first_index
        if known < 0:
            return self.receipt(is_resend_wanted=True)
        if known <= len(entry.token_ids):
            self.is_started = True
            self.journal.extend(entry.token_ids[known:])
            self.finish_reason = self.finish_reason or entry.finish_reason
        assert tuple(self.journal) == self.undisturbed[: len(self.journal)], "a token changed"
        assert self.finish_reason is None or len(self.journal) == len(self.undisturbed)
        return self.receipt()

    def generate_elsewhere(self, count: int) -> None:
        """Another worker has generated some more, all but the last token at most."""
        if self.finish_reason is None:
            end = min(len(self.journal) + count, len(self.undisturbed) - 1)
            self.journal.extend(self.undisturbed[len(self.journal) : end])


class Network:
    """One worker, the owners, and the messages under way between them."""

    def __init__(self, owners: list[Owner]) -> None:
        self.owners = owners
        self.core = WorkerCore(OPTIONS, Scheduler(ENGINE))
        self.runner = SimulatedRunner(vocabulary_size=VOCABULARY, eos_token_ids=EOS)
        self.under_way: list[Message] = []
        self.now_ns = 0
        self.timers: dict[str, int] = {}
        self.step: RunStep | None = None
        self.handle(WorkerStarted(cause_id="start"))

    def handle(self, event: WorkerEvent) -> None:
        for command in self.core.handle(event, now_ns=self.now_ns):
            match command:
                case RunStep():
                    assert self.step is None
                    self.step = command
                case SendTokens(step=step):
                    self.under_way.append(step)
                case SendToRouter(message=message):
                    self.under_way.append(message)
                case SetTimer(key=key, after_ns=after_ns):
                    self.timers[key] = self.now_ns + after_ns
                case PublishReport():
                    pass
                case StopProcess():
                    raise AssertionError("nothing asked the worker to stop")
        self.core.check_invariants()

    def deliver(self, message: Message) -> None:
        match message:
            case StartSession():
                self.handle(StartReceived(message=message, cause_id="network"))
            case AcknowledgeTokens():
                self.handle(AcknowledgeReceived(message=message, cause_id="network"))
            case EndSession():
                self.handle(EndReceived(message=message, cause_id="network"))
            case TokenStep(entries=entries):
                self.under_way += [self.owner(e.request_id).take(e) for e in entries]
            case SessionStarted():
                owner = self.owner(message.request_id)
                owner.is_started |= message.session_epoch == owner.epoch
            case SessionRefused():
                owner = self.owner(message.request_id)
                if message.session_epoch == owner.epoch and owner.finish_reason is None:
                    self.under_way.append(owner.start_anew())

    def owner(self, request_id: str) -> Owner:
        return next(o for o in self.owners if o.spec.request_id == request_id)

    def finish_step(self) -> None:
        step, self.step = self.step, None
        if step is not None:
            result = self.runner.run(step.plan)
            self.handle(
                StepFinished(op_id=step.op_id, result=result, duration_ns=1, cause_id="engine")
            )

    def pass_time(self, duration_ns: int) -> None:
        end_ns = self.now_ns + duration_ns
        while due := [(at_ns, key) for key, at_ns in self.timers.items() if at_ns <= end_ns]:
            self.now_ns, key = min(due)
            del self.timers[key]
            self.handle(TimerFired(key=key, cause_id="timer"))
        self.now_ns = end_ns

    def act(self, action: Action, number: int) -> None:
        owner = self.owners[number % len(self.owners)]
        match action:
            case "start":
                self.under_way.append(owner.start())
            case "take_over" if owner.finish_reason is None:
                self.under_way.append(owner.start_anew())
            case "elsewhere":
                owner.generate_elsewhere(number % 7)
                owner.epoch += 1
                self.under_way.append(owner.start_anew())
            case "end":
                self.under_way.append(owner.end(owner.epoch))
                owner.epoch += 1
            case "end_older":
                self.under_way.append(owner.end(max(1, owner.epoch - 1)))
            case "probe":
                self.under_way.append(owner.receipt(is_resend_wanted=number % 2 == 0))
            case "deliver" if self.under_way:
                self.deliver(self.under_way.pop(number % len(self.under_way)))
            case "double" if self.under_way:
                self.deliver(self.under_way[number % len(self.under_way)])
            case "drop" if self.under_way:
                del self.under_way[number % len(self.under_way)]
            case "step":
                self.finish_step()
            case "pass_time":
                self.pass_time(number * NS_PER_MS)
            case _:
                pass

    def heal(self) -> None:
        """From here on nothing is lost, and routers repeat what is not answered."""
        for _ in range(ROUNDS_TO_HEAL_MAX):
            under_way, self.under_way = self.under_way, []
            for message in under_way:
                self.deliver(message)
            self.finish_step()
            self.pass_time(100 * NS_PER_MS)
            open_owners = [owner for owner in self.owners if owner.finish_reason is None]
            if not (open_owners or self.under_way or self.core.sessions_held or self.step):
                return
            for owner in open_owners:
                probe = owner.receipt(is_resend_wanted=True)
                self.under_way.append(probe if owner.is_started else owner.start())
        raise AssertionError("the session did not end although the network is well")


@st.composite
def owners(draw: st.DrawFn) -> list[Owner]:
    found = []
    for number in range(draw(st.integers(1, 3))):
        temperature, seed = draw(st.sampled_from([(0.0, None), (1.0, 5), (1.0, 6)]))
        max_tokens = draw(st.integers(1, 24))
        spec = SessionSpec(
            request_id=f"r{number}",
            alias="tide",
            prompt_token_ids=(3, 1, 4, 1, 5)[: draw(st.integers(1, 5))],
            max_tokens=max_tokens,
            sampling=SamplingParameters(
                temperature=temperature,
                seed=seed,
                logprobs=draw(st.sampled_from([None, 0, 2])),
                min_tokens=draw(st.integers(0, 2)) if max_tokens > 1 else 0,
                stop_token_ids=draw(st.sampled_from([(), (7, 8, 9)])),
            ),
            ignore_eos=draw(st.booleans()),
            priority=draw(st.integers(-1, 1)),
        )
        owner = Owner(spec=spec, undisturbed=())
        owner.undisturbed = simulated_tokens(
            sequence_of(owner.start(), sequence_id="reference"),
            vocabulary_size=VOCABULARY,
            eos_token_ids=EOS,
            context_tokens_max=ENGINE.context_tokens_max,
        )
        found.append(owner)
    return found


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(
    owners=owners(),
    actions=st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 3000)), max_size=80),
)
def test_every_session_ends_with_the_tokens_of_an_undisturbed_run(
    owners: list[Owner], actions: list[tuple[Action, int]]
) -> None:
    network = Network(owners)
    network.under_way += [owner.start() for owner in owners]
    for action, number in actions:
        network.act(action, number)
    network.heal()
    for owner in owners:
        assert tuple(owner.journal) == owner.undisturbed
    network.pass_time(1_000 * NS_PER_MS)
    assert network.core.sessions_held == 0
    assert network.step is None
