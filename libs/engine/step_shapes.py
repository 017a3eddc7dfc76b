"""Steps of chosen shapes, to be timed: which shapes, and the plans that compute them; pure.

A scheduler would reach a step of 32 decodes behind 1,024 tokens each only after minutes. Plans made
by hand reach it at once: all sequences read and write one pool of blocks that was filled before.

    pool   | 0 .. | ... | ... | ... | ... |      sequence i begins at its own place and wraps around
             ^seq 0   ^seq 1  ^seq 2             so sequences share blocks only where all of their
                                                 tokens together are more than the pool has
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Final

from libs.engine.requests import SamplingOptions, SequenceRequest, StopOptions
from libs.engine.scheduler import SchedulerOptions
from libs.engine.steps import PlanEntry, StepPlan
from libs.kernel.core import require
from libs.kernel.rng import Rng
from libs.policy.latency_model import StepWork

DECODES: Final = (1, 2, 4, 8, 16, 32, 64)
CONTEXT_TOKENS_MAX: Final = 4096
"""Beyond, attention grows as it did before, and only fewer sequences would fit the pool."""
CHUNK_SHARES: Final = (64, 16, 4, 2, 1)
"""A chunk fills one of so many parts of a step."""
MIXED: Final = ((4, 8), (16, 32), (32, 16))
"""(decodes, one of so many parts of the context before each), beside a chunk that fills the step,
or half of it."""
HELD_OUT: Final = 12
"""Steps that the fit never sees."""
PREFILL_ID: Final = "prefill"


@dataclass(frozen=True, slots=True, kw_only=True)
class StepShape:
    """A step of equal decodes and at most one chunk of a prompt."""

    decodes: int = 0
    decode_tokens_before: int = 0
    chunk_tokens: int = 0
    """0: no chunk; never 1, which would be a decode."""
    chunk_tokens_before: int = 0

    @property
    def work(self) -> StepWork:
        """What its time depends on."""
        work = StepWork(
            rows=self.decodes,
            tokens_attended=self.decodes * self.decode_tokens_before,
            sequences=self.decodes,
        )
        if not self.chunk_tokens:
            return work
        return work.with_prefill(tokens=self.chunk_tokens, tokens_before=self.chunk_tokens_before)

    @property
    def longest_tokens(self) -> int:
        """Tokens of its longest sequence, after the step."""
        return max(
            self.decode_tokens_before + 1 if self.decodes else 0,
            self.chunk_tokens_before + self.chunk_tokens,
        )


def shapes_to_fit(options: SchedulerOptions, *, pool_tokens: int) -> list[StepShape]:
    """Return a grid over all kinds of work that an engine of these bounds can be given."""
    step_tokens = options.step_tokens_max
    context = min(options.context_tokens_max, pool_tokens, CONTEXT_TOKENS_MAX)
    shapes = [
        StepShape(decodes=decodes, decode_tokens_before=before)
        for decodes, before in product(DECODES, (context // 128, context // 8, context // 2))
    ]
    shapes += [
        StepShape(chunk_tokens=step_tokens // share, chunk_tokens_before=before)
        for share, before in product(CHUNK_SHARES, (0, context // 4, context * 3 // 4))
    ]
    shapes += [
        StepShape(
            decodes=decodes,
            decode_tokens_before=context // part,
            chunk_tokens=(step_tokens - decodes) // share,
        )
        for (decodes, part), share in product(MIXED, (1, 2))
    ]
    return [shape for shape in shapes if _is_possible(shape, options, pool_tokens)]


def held_out_shapes(options: SchedulerOptions, *, pool_tokens: int, rng: Rng) -> list[StepShape]:
    """Return random steps between those of the grid, to judge the fit by."""
    shapes: list[StepShape] = []
    context = min(options.context_tokens_max, pool_tokens, CONTEXT_TOKENS_MAX)
    while len(shapes) < HELD_OUT:
        decodes = rng.randrange(0, options.sequences_max + 1)
        chunk_max = max(0, options.step_tokens_max - decodes)
        has_chunk = not decodes or rng.randrange(2) == 1
        shape = StepShape(
            decodes=decodes,
            decode_tokens_before=rng.randrange(1, context),
            chunk_tokens=rng.randrange(2, chunk_max + 1) if has_chunk and chunk_max >= 2 else 0,
            chunk_tokens_before=rng.randrange(0, context) if has_chunk else 0,
        )
        if shape.work.rows and _is_possible(shape, options, pool_tokens):
            shapes.append(shape)
    return shapes


def _is_possible(shape: StepShape, options: SchedulerOptions, pool_tokens: int) -> bool:
    return (
        shape.decodes + bool(shape.chunk_tokens) <= options.sequences_max
        and shape.work.rows <= options.step_tokens_max
        and shape.chunk_tokens != 1
        and shape.longest_tokens <= min(options.context_tokens_max, pool_tokens)
        # Sharing a block between two sequences is as good as two blocks, between ten it is not.
        and shape.decodes * shape.decode_tokens_before <= 2 * pool_tokens
    )


class StepPlans:
    """Makes plans of one engine, in the order in which they are to be run."""

    def __init__(self, options: SchedulerOptions, *, vocabulary_size: int, rng: Rng) -> None:
        self._options = options
        self._vocabulary_size = vocabulary_size
        self._rng = rng
        self._opened: set[str] = set()
        self._steps = 0

    def filling(self, *, pool_tokens: int) -> Iterator[tuple[StepShape, StepPlan]]:
        """Yield chunks of prompts that write the pool from its beginning to its end."""
        size = self._options.block_tokens
        chunk_tokens = min(self._options.step_tokens_max, self._options.context_tokens_max - 1)
        chunk_tokens -= chunk_tokens % size
        require(chunk_tokens > 0, "a step is smaller than a block")
        for first_block in range(0, pool_tokens // size, chunk_tokens // size):
            blocks = min(chunk_tokens // size, pool_tokens // size - first_block)
            shape = StepShape(chunk_tokens=blocks * size)
            table = tuple(range(first_block, first_block + blocks))
            yield shape, self._plan([self._chunk(shape, table)])

    def step(self, shape: StepShape, *, pool_tokens: int) -> StepPlan:
        """Return the plan of one step over a pool that is filled."""
        blocks = pool_tokens // self._options.block_tokens
        entries = []
        for index in range(shape.decodes):
            first = index * blocks // shape.decodes
            table = self._table(first, shape.decode_tokens_before + 1, blocks=blocks)
            entries.append(self._decode(index, shape, table))
        if shape.chunk_tokens:
            tokens = shape.chunk_tokens_before + shape.chunk_tokens
            entries.append(self._chunk(shape, self._table(0, tokens, blocks=blocks)))
        return self._plan(entries)

    def _table(self, first: int, tokens: int, *, blocks: int) -> tuple[int, ...]:
        count = -(-tokens // self._options.block_tokens)
        return tuple((first + offset) % blocks for offset in range(count))

    def _decode(self, index: int, shape: StepShape, table: tuple[int, ...]) -> PlanEntry:
        return PlanEntry(
            sequence_id=f"decode-{index}",
            token_ids=self._token_ids(1),
            start_position=shape.decode_tokens_before,
            block_table=table,
            is_sampling=True,
            output_index=1,
        )

    def _chunk(self, shape: StepShape, table: tuple[int, ...]) -> PlanEntry:
        return PlanEntry(
            sequence_id=PREFILL_ID,
            token_ids=self._token_ids(shape.chunk_tokens),
            start_position=shape.chunk_tokens_before,
            block_table=table,
            is_sampling=True,
            output_index=0,
        )

    def _plan(self, entries: Sequence[PlanEntry]) -> StepPlan:
        new_ids = [e.sequence_id for e in entries if e.sequence_id not in self._opened]
        self._opened.update(new_ids)
        plan = StepPlan(
            step_id=self._steps,
            entries=tuple(entries),
            opened=tuple(_request(sequence_id) for sequence_id in new_ids),
            closed=(),
        )
        self._steps += 1
        return plan

    def _token_ids(self, tokens: int) -> tuple[int, ...]:
        return tuple(self._rng.randrange(self._vocabulary_size) for _ in range(tokens))


def _request(sequence_id: str) -> SequenceRequest:
    # Sampled at temperature 1, the API's default, which costs more than taking the best token.
    return SequenceRequest(
        sequence_id=sequence_id,
        prompt_token_ids=(0,),
        sampling=SamplingOptions(temperature=1.0),
        stop=StopOptions(max_tokens=1_000_000, ignore_eos=True),
    )
