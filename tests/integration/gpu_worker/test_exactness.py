"""Offline answers, in fp32, are those of an undisturbed run, whatever online arrivals do to them.

The real model, worker core, scheduler, safepoints and host memory in one process. Online sessions
arrive at random: the scheduler itself has the offline step in flight given up, and the long ones
take nearly all blocks, so that offline sessions are evicted and come back from host memory.
`--exactness-yields 2000` is the whole run; the suite's own is a shorter one of the same kind.
"""

from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from random import Random

import pytest
import torch

from libs.engine.batch_run import run_to_completion
from libs.engine.host_memory import HostMemory, _checksums
from libs.engine.loading import EngineOptions, LoadedEngine, load_engine
from libs.engine.requests import SequenceRequest
from libs.engine.scheduler import Scheduler
from libs.engine.scheduling.coserve import CoserveOptions
from libs.engine.steps import StepPlan, StepResult, TokenEmitted
from services.gpu_worker.admission import sequence_of
from services.gpu_worker.commands import LoadBlocks, StoreBlocks
from services.gpu_worker.events import BlocksLoaded, BlocksStored, HostCopyFailed, WorkerEvent
from tests.checkpoint_world import BLOCK_TOKENS, ONLINE, CheckpointWorld, Copying

MODEL = Path(__file__).parents[3] / "models" / "tide-tiny"
BLOCKS, HOST_BLOCKS = 24, 96
BLOCKS_UNDISTURBED = 4096
OFFLINE_OPEN = 12
ONE_IN_LONG = 8
"""So many online sessions for each that takes nearly all blocks."""
LONG_PROMPT = BLOCK_TOKENS * BLOCKS - 10
EVENTS_BETWEEN_MAX = 8
LATE_AT_ONCE = CoserveOptions(ttft_slo_ns=1, yield_ns_max=1)
"""Every online arrival is late, whatever runs."""
YIELDS_OF_CONTROLS = 60
NEAR_TIE = 1e-4
"""Between the scores of the two best tokens: within rounding."""
TOKENS_PER_NEAR_TIE = 100_000


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "yields" in metafunc.fixturenames:
        metafunc.parametrize("yields", [metafunc.config.getoption("--exactness-yields")])


def an_engine(*, blocks: int) -> LoadedEngine:
    return load_engine(
        str(MODEL),
        options=EngineOptions(
            dtype="float32", blocks_total=blocks, block_tokens=BLOCK_TOKENS, sequences_max=8
        ),
    )


@cache
def reference() -> LoadedEngine:
    return an_engine(blocks=BLOCKS_UNDISTURBED)


@dataclass
class RealWorld(CheckpointWorld):
    """The world of the unit tests with a real engine in it."""

    blocks_total: int = BLOCKS
    host_blocks: int = HOST_BLOCKS
    coserve: CoserveOptions = LATE_AT_ONCE
    rng: Random = field(default_factory=lambda: Random(7))
    is_corrupting: bool = False
    """Whether each block that is loaded has changed in host memory before."""
    is_hiding_it: bool = False
    """And its checksum with it."""
    is_spoiling_tails: bool = False
    """Whether a step that is given up spoils the last block of those that are computed already."""
    loads: int = 0
    stores: int = 0

    def __post_init__(self) -> None:
        self.loaded = an_engine(blocks=self.blocks_total)
        super().__post_init__()
        self.memory = HostMemory(self.loaded.attention, slots=self.host_blocks)

    @property
    def evictions(self) -> int:
        """Offline sessions that lost their blocks to online ones."""
        return self.core.tally.evictions_stored + self.core.tally.evictions_recomputed

    @property
    def moves(self) -> int:
        """Evictions, and copies to host memory and back."""
        return self.evictions + self.stores + self.loads

    def run_plan(self, plan: StepPlan, *, is_yielded: bool) -> StepResult:
        """Run a step; one that is given up stops at any of its layers but the first."""
        if is_yielded:
            self.loaded.runner.request_yield(plan.step_id)
            layer = self.rng.randrange(1, self.loaded.config.layers)
            plan = replace(plan, layers_between_safepoints=layer)
            if self.is_spoiling_tails:
                self._spoil_tail(plan)
        return self.loaded.runner.run(plan)

    def _spoil_tail(self, plan: StepPlan) -> None:
        attention = self.loaded.attention
        for entry in plan.entries:
            if entry.start_position > 0:
                tail = entry.block_table[(entry.start_position - 1) // BLOCK_TOKENS]
                attention.scatter_blocks([tail], attention.gather_blocks([tail]).neg())

    def carry_out(self, copying: Copying, *, fails: bool) -> WorkerEvent:
        command = copying.command
        name = {"op_id": command.op_id, "cause_id": command.cause_id}
        if fails:
            return HostCopyFailed(message="the test says so", **name)
        match command:
            case StoreBlocks(pairs=pairs):
                self.stores += 1
                self.memory.store(pairs)
                return BlocksStored(duration_ns=1, **name)
            case LoadBlocks(pairs=pairs):
                self.loads += 1
                if self.is_corrupting:
                    self._corrupt(pairs[0][0])
                corrupt = self.memory.load(pairs)
                return BlocksLoaded(slots_corrupt=corrupt, duration_ns=1, **name)

    def _corrupt(self, slot: int) -> None:
        row_LE = self.memory._slots_SLE[slot]
        row_LE.neg_()
        if self.is_hiding_it:
            (self.memory._checksums[slot],) = _checksums(row_LE[None])

    def requests(self) -> list[SequenceRequest]:
        """All that were started, as the engine sees them."""
        return [sequence_of(start, sequence_id=name) for name, start in self.starts.items()]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> None:
    torch.set_num_threads(1)


def disturbed(world: RealWorld, *, yields: int) -> RealWorld:
    """Have online sessions arrive at random until so many steps were given up for them."""
    rng, opened, arrived = world.rng, 0, 0
    while world.steps_yielded < yields:
        while world.scheduler.load().offline_waiting < OFFLINE_OPEN:
            prompt, tokens = a_prompt(rng, rng.randrange(4, 20)), rng.randrange(4, 40)
            world.start(f"off-{opened}", prompt=prompt, tokens=tokens)
            opened += 1
        for _ in range(rng.randrange(EVENTS_BETWEEN_MAX)):
            go_on(world)
        length = LONG_PROMPT if rng.randrange(ONE_IN_LONG) == 0 else rng.randrange(3, 8)
        world.start(f"on-{arrived}", prompt=a_prompt(rng, length), tokens=1, priority=ONLINE)
        arrived += 1
    while world.step is not None or world.copies:
        go_on(world)
    return world


def a_prompt(rng: Random, length: int) -> tuple[int, ...]:
    return tuple(rng.randrange(3, 400) for _ in range(length))


def go_on(world: RealWorld) -> None:
    """Let a step or a copy end, in any order; a step ends early if the core wants it to."""
    if world.copies and (world.step is None or world.rng.random() < 0.4):
        world.finish_copy(world.rng.randrange(len(world.copies)), fails=world.rng.random() < 0.05)
    elif world.step is not None:
        world.finish_step(is_yielded=world.is_asked_to_yield)


@dataclass(frozen=True, kw_only=True)
class Compared:
    """Answers of a disturbed run beside those of an undisturbed one."""

    tokens: int
    near_ties: int
    """Answers that part where the two best tokens are as good."""
    differing: list[str]
    """Answers that part anywhere else."""


def compared(world: RealWorld) -> Compared:
    """Answer everything again, all at once and with room for all of it."""
    engine = reference()
    scheduler = Scheduler(replace(engine.scheduler_options, sequences_max=32))
    undisturbed = run_to_completion(scheduler, engine.runner, world.requests())
    differing, near_ties = [], 0
    for name, tokens in undisturbed.items():
        expected, answer = [token.token_id for token in tokens], world.answers.get(name, [])
        if answer == expected:
            continue
        if len(answer) == len(expected) and is_near_tie(engine, world, name, tokens):
            near_ties += 1
        else:
            differing.append(name)
    return Compared(
        tokens=sum(map(len, undisturbed.values())), near_ties=near_ties, differing=differing
    )


def is_near_tie(
    engine: LoadedEngine, world: RealWorld, name: str, tokens: list[TokenEmitted]
) -> bool:
    """Whether the two best tokens were as good where the answers part."""
    pairs = zip(tokens, world.answers[name], strict=True)
    index = next(i for i, (token, other) in enumerate(pairs) if token.token_id != other)
    request = sequence_of(world.starts[name], sequence_id=name)
    sampling = replace(request.sampling, logprobs=2)
    scheduler = Scheduler(engine.scheduler_options)
    scored = run_to_completion(scheduler, engine.runner, [replace(request, sampling=sampling)])
    logprobs = scored[name][index].logprobs
    assert logprobs is not None
    best, second = logprobs.best
    return best.logprob - second.logprob < NEAR_TIE


def test_offline_answers_are_those_of_an_undisturbed_run(yields: int) -> None:
    world = disturbed(RealWorld(), yields=yields)
    found = compared(world)
    print(
        f"{found.tokens} tokens of {len(world.starts)} answers: {world.steps_yielded} yields,"
        f" {world.evictions} evictions, {world.stores} copies to host memory,"
        f" {world.loads} back; {found.near_ties} near-ties, {len(found.differing)} differ"
    )
    assert found.differing == []
    assert found.near_ties * TOKENS_PER_NEAR_TIE <= found.tokens
    assert world.steps_yielded >= yields
    assert world.moves >= yields // 2
    assert min(world.evictions, world.stores, world.loads) > yields // 20
    assert world.counters.blocks_corrupt == 0


def test_what_changed_in_host_memory_is_found_by_its_checksum_and_computed_again() -> None:
    world = disturbed(RealWorld(is_corrupting=True), yields=YIELDS_OF_CONTROLS)
    assert world.counters.blocks_corrupt > 0
    assert compared(world).differing == []


@pytest.mark.parametrize(
    "spoiled",
    [{"is_corrupting": True, "is_hiding_it": True}, {"is_spoiling_tails": True}],
    ids=["a copy in host memory", "the last block of a step that was given up"],
)
def test_a_block_that_is_not_what_it_was_makes_answers_differ(spoiled: dict[str, bool]) -> None:
    """The negative control: what is compared is computed of these very blocks."""
    world = disturbed(RealWorld(**spoiled), yields=YIELDS_OF_CONTROLS)
    assert compared(world).differing != []
