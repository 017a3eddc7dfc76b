"""A worker core whose KV is real enough to be wrong: every cell knows which tokens it stands for.

The engine checks, for each step, that all it attends to was computed of the very tokens before it.
A copy reads and writes when it *ends*, as late as it may: a block that is given to others while it
is copied shows up as wrong content.
"""

from dataclasses import dataclass, field
from random import Random

from libs.contracts.online import SamplingParameters
from libs.contracts.sessions import (
    AcknowledgeTokens,
    EndSession,
    SessionSpec,
    StartSession,
    TokenReceipt,
)
from libs.engine.requests import SequenceRequest
from libs.engine.scheduler import Scheduler, SchedulerOptions
from libs.engine.scheduling.coserve import CoserveOptions
from libs.engine.simulated_runner import SimulatedRunner, simulated_token
from libs.engine.steps import PlanEntry, StepPlan, StepResult
from libs.kernel.core import SetTimer
from libs.kernel.units import NS_PER_MS
from libs.policy.kv_return import HostLink
from services.gpu_worker.admission import sequence_of
from services.gpu_worker.checkpoint_options import CheckpointOptions, CheckpointPolicy, HostRoom
from services.gpu_worker.commands import (
    HostCommand,
    LoadBlocks,
    PublishReport,
    RunStep,
    SendTokens,
    SendToRouter,
    StoreBlocks,
    YieldStep,
)
from services.gpu_worker.core import WorkerCore
from services.gpu_worker.events import (
    AcknowledgeReceived,
    BlocksLoaded,
    BlocksStored,
    EndReceived,
    HostCopyFailed,
    StartReceived,
    StepFinished,
    WorkerEvent,
    WorkerStarted,
)
from services.gpu_worker.options import WorkerOptions

BLOCK_TOKENS = 4
VOCABULARY = 500
ONLINE, OFFLINE = 0, -1
FAST_LINK = HostLink(copy_ns=1, bytes_per_s=10**12)
"""A copy back always pays."""
SLOW_LINK = HostLink(copy_ns=10**12, bytes_per_s=1)
"""It never does."""
Cell = int
"""Hash of all tokens up to a position, that one included."""
EMPTY: Cell = -1
GARBAGE: Cell = -2
Block = list[Cell]


class WrongContent(AssertionError):
    """The engine attends to KV of other tokens than those of its sequence."""


@dataclass
class Copying:
    """A copy under way."""

    command: HostCommand
    seen: list[Block]
    """What its source held when it began."""


@dataclass
class CheckpointWorld:
    """One worker; the test decides when steps and copies end, and how."""

    policy: CheckpointPolicy = "eager"
    blocks_total: int = 16
    host_blocks: int = 64
    link: HostLink = FAST_LINK
    copy_share_max: float = 1.0
    step_tokens_max: int = 64
    coserve: CoserveOptions = field(default_factory=CoserveOptions)
    now_ns: int = 0
    step: RunStep | None = None
    copies: list[Copying] = field(default_factory=list)
    answers: dict[str, list[int]] = field(default_factory=dict)
    ended: set[str] = field(default_factory=set)
    acknowledged: dict[str, int] = field(default_factory=dict)
    is_asked_to_yield: bool = False
    """Whether the core wants the step in flight given up."""
    steps_yielded: int = 0
    tokens_computed: int = 0
    """Tokens whose KV the engine has computed, yielded steps left out."""

    def __post_init__(self) -> None:
        self.engine = SchedulerOptions(
            step_tokens_max=self.step_tokens_max,
            sequences_max=8,
            block_tokens=BLOCK_TOKENS,
            blocks_total=self.blocks_total,
            context_tokens_max=BLOCK_TOKENS * self.blocks_total,
            eos_token_ids=frozenset(),
            layers=8,
            coserve=self.coserve,
        )
        options = WorkerOptions(
            worker_id="worker-a",
            alias="tide",
            process_id=7,
            vocabulary_size=VOCABULARY,
            engine=self.engine,
            checkpoints=CheckpointOptions(
                policy=self.policy,
                room=HostRoom(blocks=self.host_blocks, block_bytes=1),
                link_assumed=self.link,
                copy_share_max=self.copy_share_max,
            ),
        )
        self.scheduler = Scheduler(self.engine)
        self.core = WorkerCore(options, self.scheduler)
        self.runner = SimulatedRunner(vocabulary_size=VOCABULARY, eos_token_ids=frozenset())
        self.device: list[Block] = [[EMPTY] * BLOCK_TOKENS for _ in range(self.blocks_total)]
        self.host: list[Block] = [[EMPTY] * BLOCK_TOKENS for _ in range(self.host_blocks)]
        self.texts: dict[str, list[int]] = {}
        self.starts: dict[str, StartSession] = {}
        self.handle(WorkerStarted(cause_id="start"))

    @property
    def tier(self):  # type: ignore[no-untyped-def]
        kv = self.core.checkpointing.current
        assert kv is not None
        return kv.tier

    @property
    def counters(self):  # type: ignore[no-untyped-def]
        return self.core.checkpointing.counters

    def handle(self, event: WorkerEvent) -> None:
        self.now_ns += NS_PER_MS
        for command in self.core.handle(event, now_ns=self.now_ns):
            match command:
                case RunStep():
                    assert self.step is None, "two steps in flight"
                    self.step = command
                    self.is_asked_to_yield = False
                case YieldStep(step_id=step_id):
                    assert self.step is not None, "no step is in flight"
                    assert step_id == self.step.plan.step_id
                    self.is_asked_to_yield = True
                case StoreBlocks(pairs=pairs):
                    self._begin(command, [self.device[block] for block, _ in pairs])
                case LoadBlocks(pairs=pairs):
                    self._begin(command, [self.host[slot] for slot, _ in pairs])
                case SendTokens(step=step):
                    for entry in step.entries:
                        self.answers.setdefault(entry.request_id, []).extend(entry.token_ids)
                case SetTimer() | SendToRouter() | PublishReport():
                    pass
                case other:
                    raise AssertionError(other)
        self.core.check_invariants()

    # ------------------------------------------------------------------ sessions

    def start(
        self,
        name: str,
        *,
        prompt: tuple[int, ...] = (),
        tokens: int = 8,
        priority: int = OFFLINE,
    ) -> None:
        spec = SessionSpec(
            request_id=name,
            alias="tide",
            prompt_token_ids=prompt or tuple(range(1, 14)),
            max_tokens=tokens,
            sampling=SamplingParameters(temperature=0.0),
            ignore_eos=True,
            priority=priority,
        )
        start = StartSession(router_id="router-a", session_epoch=1, spec=spec)
        self.starts[name] = start
        self.handle(StartReceived(message=start, cause_id=name))
        self.acknowledge()

    def end(self, name: str) -> None:
        """The client went away."""
        self.ended.add(name)
        message = EndSession(request_id=name, session_epoch=1)
        self.handle(EndReceived(message=message, cause_id=name))

    def acknowledge(self) -> None:
        news = {
            name: len(tokens)
            for name, tokens in self.answers.items()
            if len(tokens) > self.acknowledged.get(name, 0)
        }
        if not news:
            return
        self.acknowledged |= news
        receipts = tuple(
            TokenReceipt(request_id=name, session_epoch=1, next_index=next_index)
            for name, next_index in news.items()
        )
        message = AcknowledgeTokens(router_id="router-a", receipts=receipts)
        self.handle(AcknowledgeReceived(message=message, cause_id="receipts"))

    def expected(self, name: str) -> list[int]:
        request = self._request(name)
        return [
            simulated_token(request, index=index, vocabulary_size=VOCABULARY)
            for index in range(request.stop.max_tokens)
        ]

    def is_finished(self, name: str) -> bool:
        return len(self.answers.get(name, ())) == self._request(name).stop.max_tokens

    def _request(self, name: str) -> SequenceRequest:
        return sequence_of(self.starts[name], sequence_id=name)

    # ------------------------------------------------------------------ the engine

    def finish_step(self, *, is_yielded: bool = False) -> None:
        """Let the step that runs end, whole or given up in the middle."""
        step, self.step = self.step, None
        assert step is not None, "no step is in flight"
        result = self.run_plan(step.plan, is_yielded=is_yielded)
        assert result.is_yielded == is_yielded
        self.steps_yielded += is_yielded
        finished = StepFinished(
            op_id=step.op_id, result=result, duration_ns=10 * NS_PER_MS, cause_id=step.cause_id
        )
        self.handle(finished)

    def run_plan(self, plan: StepPlan, *, is_yielded: bool) -> StepResult:
        """Run a step, or give it up in the middle."""
        for request in plan.opened:
            known = [*request.prompt_token_ids, *request.generated_token_ids]
            self.texts[request.sequence_id] = known
        for entry in plan.entries:
            self._compute(entry, is_yielded=is_yielded)
        result = self.runner.run(plan)
        if is_yielded:
            return StepResult(step_id=plan.step_id, sampled=(), is_yielded=True)
        for token in result.sampled:
            self.texts[token.sequence_id].append(token.token_id)
        return result

    def _compute(self, entry: PlanEntry, *, is_yielded: bool) -> None:
        text = self.texts[entry.sequence_id]
        end = entry.start_position + len(entry.token_ids)
        assert tuple(text[entry.start_position : end]) == entry.token_ids
        for position in range(entry.start_position):
            if self._cell(entry, position) != _content(text, position):
                raise WrongContent(f"{entry.sequence_id} at {position}")
        for position in range(entry.start_position, end):
            cell = GARBAGE if is_yielded else _content(text, position)
            block = self.device[entry.block_table[position // BLOCK_TOKENS]]
            block[position % BLOCK_TOKENS] = cell
        if not is_yielded:
            self.tokens_computed += len(entry.token_ids)

    def _cell(self, entry: PlanEntry, position: int) -> Cell:
        block = self.device[entry.block_table[position // BLOCK_TOKENS]]
        return block[position % BLOCK_TOKENS]

    # ------------------------------------------------------------------ copies

    def _begin(self, command: HostCommand, sources: list[Block]) -> None:
        self.copies.append(Copying(command, [list(source) for source in sources]))

    def finish_copy(self, index: int = 0, *, fails: bool = False) -> None:
        """Let a copy end: all of it is read and written only now."""
        self.handle(self.carry_out(self.copies.pop(index), fails=fails))

    def carry_out(self, copying: Copying, *, fails: bool) -> WorkerEvent:
        """Copy."""
        command = copying.command
        name = {"op_id": command.op_id, "cause_id": command.cause_id}
        outcome: WorkerEvent
        match command:
            case StoreBlocks(pairs=pairs):
                for (block, slot), seen in zip(pairs, copying.seen, strict=True):
                    if self.device[block] != seen:
                        raise WrongContent(f"block {block} changed while it was stored")
                    self.host[slot] = [GARBAGE] * BLOCK_TOKENS if fails else list(seen)
                outcome = BlocksStored(duration_ns=1, **name)
            case LoadBlocks(pairs=pairs):
                corrupt = []
                for (slot, block), seen in zip(pairs, copying.seen, strict=True):
                    if self.host[slot] != seen or GARBAGE in seen:
                        corrupt.append(slot)
                    else:
                        self.device[block] = [GARBAGE] * BLOCK_TOKENS if fails else list(seen)
                outcome = BlocksLoaded(slots_corrupt=tuple(corrupt), duration_ns=1, **name)
        return HostCopyFailed(message="the test says so", **name) if fails else outcome

    # ------------------------------------------------------------------ to the end

    def finish_copies(self) -> None:
        while self.copies:
            self.finish_copy()

    def run(self, steps: int, *, with_copies: bool = True) -> None:
        for _ in range(steps):
            if with_copies:
                self.finish_copies()
            self.finish_step()

    def run_to_the_end(self, *, steps_max: int = 2000) -> None:
        """Until nobody waits, and every answer is what it would have been undisturbed."""
        for _ in range(steps_max):
            self.finish_copies()
            if self.step is None:
                break
            self.finish_step()
        assert self.step is None, "work is left"
        for name in self.starts:
            answer, expected = self.answers.get(name, []), self.expected(name)
            assert answer == (expected[: len(answer)] if name in self.ended else expected), name

    def disturb(self, rng: Random) -> None:
        """Do any one thing that may happen."""
        if rng.random() < 0.02:
            for block in self.host:
                block[0] = GARBAGE
        if self.copies and rng.random() < 0.4:
            self.finish_copy(rng.randrange(len(self.copies)), fails=rng.random() < 0.1)
        elif self.step is not None:
            can_yield = self.step.plan.layers_between_safepoints is not None
            self.finish_step(is_yielded=can_yield and rng.random() < 0.3)
        elif self.copies:
            self.finish_copy()


def _content(text: list[int], position: int) -> Cell:
    return hash(tuple(text[: position + 1]))
