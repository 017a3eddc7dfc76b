"""What safepoints and checkpoints cost, and how soon a step stops that is asked to.

    python -m benchmarks.safepoints [--model models/tide-tiny] [--turns 40] [--json FILE]

One prompt is computed again and again: without safepoints, with one between any two layers, and
with a signal that comes at a random time. Stopping takes at most one layer, so `stop_ms_max` is to
be held against `step_ms_p50` by the number of layers. Copies go at the rate of memory: a block is
read, hashed and written, three passes at some GB/s each.
"""

import argparse
import random
import statistics
import threading
import time
from pathlib import Path
from typing import Final

import torch

from benchmarks.provenance import provenance, write_record
from libs.engine.host_memory import HostMemory
from libs.engine.loading import EngineOptions, LoadedEngine, load_engine
from libs.engine.requests import SamplingOptions, SequenceRequest, StopOptions
from libs.engine.steps import PlanEntry, StepPlan
from libs.kernel.units import MIB, NS_PER_MS, NS_PER_S

PROMPT_TOKENS: Final = 512
PROMPT: Final = tuple(range(3, 3 + PROMPT_TOKENS))
WARM_UP_TURNS: Final = 3
COPIES: Final = 20


class Bench:
    """One engine and the plans that it runs."""

    def __init__(self, model: str) -> None:
        torch.set_num_threads(1)
        options = EngineOptions(dtype="float32", step_tokens_max=PROMPT_TOKENS)
        self.engine: LoadedEngine = load_engine(model, options=options)
        self._steps = 0

    def plan(self, *, layers_between: int | None) -> StepPlan:
        """Return the prompt as a step that samples nothing."""
        self._steps += 1
        blocks = PROMPT_TOKENS // self.engine.attention.shape.block_tokens
        entry = PlanEntry(
            sequence_id="prompt",
            token_ids=PROMPT,
            start_position=0,
            block_table=tuple(range(blocks)),
            is_sampling=False,
            output_index=0,
        )
        opened = SequenceRequest(
            sequence_id="prompt",
            prompt_token_ids=PROMPT,
            sampling=SamplingOptions(),
            stop=StopOptions(max_tokens=1),
        )
        return StepPlan(
            step_id=self._steps,
            entries=(entry,),
            opened=(opened,) if self._steps == 1 else (),
            closed=(),
            layers_between_safepoints=layers_between,
        )

    def step_ns(self, *, layers_between: int | None) -> int:
        """Run one step to its end."""
        plan = self.plan(layers_between=layers_between)
        started_at_ns = time.perf_counter_ns()
        self.engine.runner.run(plan)
        return time.perf_counter_ns() - started_at_ns

    def yield_once(self, *, after_ns: int) -> None:
        """Run one step and ask it to yield after so long."""
        plan = self.plan(layers_between=1)
        asking = threading.Timer(
            after_ns / NS_PER_S, self.engine.runner.request_yield, [plan.step_id]
        )
        asking.start()
        self.engine.runner.run(plan)
        asking.join()


def measure_steps(bench: Bench, *, turns: int) -> dict[str, float]:
    """Compare steps with and without safepoints, in turns, then let some yield."""
    for _ in range(WARM_UP_TURNS):
        bench.step_ns(layers_between=None)
    counters = bench.engine.runner.safepoints.counters
    plain, watched = [], []
    for _ in range(turns):
        plain.append(bench.step_ns(layers_between=None))
        watched.append(bench.step_ns(layers_between=1))
    check_share = counters.check_ns / counters.step_ns
    check_us = counters.check_ns / counters.checks / 1000
    step_ns = statistics.median(plain)
    rng = random.Random(turns)
    for _ in range(turns):
        bench.yield_once(after_ns=rng.randrange(int(step_ns)))
    return {
        "step_ms_p50": step_ns / NS_PER_MS,
        "step_with_safepoints_ms_p50": statistics.median(watched) / NS_PER_MS,
        "check_us_mean": check_us,
        "check_share": check_share,
        "yields": counters.yields,
        "stop_ms_mean": counters.stop_ns / max(1, counters.yields) / NS_PER_MS,
        "stop_ms_max": counters.stop_ns_max / NS_PER_MS,
    }


def measure_copies(bench: Bench) -> dict[str, float]:
    """Store and load the prompt's blocks."""
    blocks = PROMPT_TOKENS // bench.engine.attention.shape.block_tokens
    memory = HostMemory(bench.engine.attention, slots=blocks)
    pairs = [(index, index) for index in range(blocks)]
    rates = {}
    for name, copy in (("store", memory.store), ("load", memory.load)):
        copy(pairs)
        started_at_ns = time.perf_counter_ns()
        for _ in range(COPIES):
            copy(pairs)
        duration_ns = time.perf_counter_ns() - started_at_ns
        bytes_copied = COPIES * blocks * memory.block_bytes
        rates[f"{name}_mib_per_s"] = bytes_copied / MIB * NS_PER_S / duration_ns
    return rates


def main() -> None:
    """Measure and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="models/tide-tiny")
    parser.add_argument("--turns", type=int, default=40)
    parser.add_argument("--json", type=Path, default=None)
    arguments = parser.parse_args()
    bench = Bench(arguments.model)
    record = {
        **provenance("benchmarks.safepoints"),
        "layers": bench.engine.config.layers,
        "prompt_tokens": PROMPT_TOKENS,
        "turns": arguments.turns,
        **measure_steps(bench, turns=arguments.turns),
        **measure_copies(bench),
    }
    write_record(record, arguments.json)


if __name__ == "__main__":
    main()
