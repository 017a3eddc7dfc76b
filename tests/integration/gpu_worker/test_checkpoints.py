"""With a real model and real copies, in fp32: offline answers under yields, evictions and returns
from host memory are those of an undisturbed run."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from random import Random

import pytest
import torch

from libs.engine.batch_run import run_to_completion
from libs.engine.host_memory import HostMemory, _checksums
from libs.engine.loading import EngineOptions, LoadedEngine, load_engine
from libs.engine.requests import SamplingOptions, SequenceRequest, StopOptions
from libs.engine.scheduler import Scheduler
from libs.engine.scheduling.coserve import CoserveOptions
from libs.engine.steps import StepPlan, StepResult
from services.gpu_worker.admission import sequence_of
from services.gpu_worker.commands import LoadBlocks, StoreBlocks
from services.gpu_worker.events import BlocksLoaded, BlocksStored, HostCopyFailed, WorkerEvent
from tests.checkpoint_world import ONLINE, CheckpointWorld, Copying

MODEL = Path(__file__).parents[3] / "models" / "tide-tiny"
BLOCKS, HOST_BLOCKS, BLOCK_TOKENS = 24, 96, 4
OFFLINE_SESSIONS, ONLINE_SESSIONS, EVENTS_BETWEEN = 24, 30, 40
YIELDS_MIN, LOADS_MIN = 150, 40
SAFEPOINTS_EVERYWHERE = CoserveOptions(yield_ns_max=1)


def an_engine(*, blocks: int) -> LoadedEngine:
    return load_engine(
        str(MODEL),
        options=EngineOptions(
            dtype="float32", blocks_total=blocks, block_tokens=BLOCK_TOKENS, sequences_max=8
        ),
    )


@cache
def reference() -> LoadedEngine:
    return an_engine(blocks=64)


@cache
def undisturbed(prompt: tuple[int, ...], tokens: int) -> list[int]:
    """Answer one request alone, with room for all of it."""
    request = SequenceRequest(
        sequence_id="s",
        prompt_token_ids=prompt,
        sampling=SamplingOptions(),
        stop=StopOptions(max_tokens=tokens, ignore_eos=True),
    )
    engine = reference()
    scheduler = Scheduler(replace(engine.scheduler_options, blocks_total=64))
    answers = run_to_completion(scheduler, engine.runner, [request])
    return [token.token_id for token in answers["s"]]


class RealWorld(CheckpointWorld):
    """The world of the unit tests with a real engine in it."""

    def __post_init__(self) -> None:
        self.loaded = an_engine(blocks=BLOCKS)
        super().__post_init__()
        self.memory = HostMemory(self.loaded.attention, slots=self.host_blocks)
        self.is_corrupting = False
        """Whether each block that is loaded has changed in host memory before."""
        self.is_hiding_it = False
        """And its checksum with it."""

    def run_plan(self, plan: StepPlan, *, is_yielded: bool) -> StepResult:
        if is_yielded:
            self.loaded.runner.request_yield(plan.step_id)
        return self.loaded.runner.run(plan)

    def carry_out(self, copying: Copying, *, fails: bool) -> WorkerEvent:
        command = copying.command
        name = {"op_id": command.op_id, "cause_id": command.cause_id}
        if fails:
            return HostCopyFailed(message="the test says so", **name)
        match command:
            case StoreBlocks(pairs=pairs):
                self.memory.store(pairs)
                return BlocksStored(duration_ns=1, **name)
            case LoadBlocks(pairs=pairs):
                if self.is_corrupting:
                    self.corrupt(pairs[0][0])
                corrupt = self.memory.load(pairs)
                return BlocksLoaded(slots_corrupt=corrupt, duration_ns=1, **name)

    def corrupt(self, slot: int) -> None:
        row_LE = self.memory._slots_SLE[slot]
        row_LE.neg_()
        if self.is_hiding_it:
            (self.memory._checksums[slot],) = _checksums(row_LE[None])

    def expected(self, name: str) -> list[int]:
        request = sequence_of(self.starts[name], sequence_id=name)
        return undisturbed(request.prompt_token_ids, request.stop.max_tokens)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> None:
    torch.set_num_threads(1)


def a_world() -> RealWorld:
    return RealWorld(
        blocks_total=BLOCKS, host_blocks=HOST_BLOCKS, coserve=CoserveOptions(yield_ns_max=1)
    )


def disturbed(world: RealWorld) -> RealWorld:
    """Answer offline sessions while online ones come again and again and take nearly all blocks."""
    rng = Random(7)
    for index in range(OFFLINE_SESSIONS):
        prompt = tuple(rng.randrange(3, 400) for _ in range(rng.randrange(8, 50)))
        world.start(f"off-{index}", prompt=prompt, tokens=rng.randrange(4, 24))
    for index in range(ONLINE_SESSIONS):
        prompt = tuple(rng.randrange(3, 400) for _ in range(86))
        world.start(f"on-{index}", prompt=prompt, tokens=2, priority=ONLINE)
        for _ in range(EVENTS_BETWEEN):
            world.disturb(rng)
    world.run_to_the_end()
    return world


def test_offline_answers_are_those_of_an_undisturbed_run() -> None:
    world = disturbed(a_world())
    assert all(world.is_finished(name) for name in world.starts)
    assert world.steps_yielded > YIELDS_MIN
    assert world.counters.blocks_loaded > LOADS_MIN
    assert world.counters.blocks_corrupt == 0


def test_what_changed_in_host_memory_is_found_by_its_checksum_and_computed_again() -> None:
    world = a_world()
    world.is_corrupting = True
    disturbed(world)
    assert all(world.is_finished(name) for name in world.starts)
    assert world.counters.blocks_corrupt > 0


def test_without_checksums_answers_would_differ() -> None:
    """The negative control: what is loaded is what answers are computed of."""
    world = a_world()
    world.is_corrupting = world.is_hiding_it = True
    with pytest.raises(AssertionError, match="off-"):
        disturbed(world)
