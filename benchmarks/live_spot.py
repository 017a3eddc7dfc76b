"""Four ways to follow nodes that come and go, compared live: same arrivals, same notices.

    python -m benchmarks.live_spot --json FILE

Real processes: broker, router, planner, migrator, and one worker a node, with a random llama of
100M parameters in replicas of two stages. In each pair every policy gets a fresh fleet and the same
minute: requests of a Poisson process, and at fixed times one node under notice, one more node, one
node killed without any. The order of the policies rotates from pair to pair. Latency counts from
sending to the last token; what failed counts as failed and not as fast.
"""

import argparse
import asyncio
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from benchmarks.engine import VOCABULARY, save_random_llama
from benchmarks.live_fleet import ALIAS, LiveFleet, live_fleet
from benchmarks.provenance import provenance, write_record
from libs.contracts.placement import PinnedShape, Policy
from libs.kernel.rng import Rng
from libs.kernel.units import MIB, NS_PER_S, milliseconds, seconds
from libs.runtime.clock import SystemClock
from loadgen.arrivals import arrivals_over, exponential_gaps, steady
from loadgen.clients.over_nats import NatsSender
from loadgen.clients.sampling import Sampling
from loadgen.records import Outcome, RunResult
from loadgen.report import Slo, summarise
from loadgen.run import LoadRun, RunLimits
from loadgen.workload import LoadRequest
from services.launcher.demo_timeline import HandoverSeen, Timeline
from services.launcher.fleet import Fleet

SHAPE: Final = PinnedShape(stages=2, shards=1)
"""Pinned, so that every policy has the same replicas: of two workers, as of a larger model."""
REQUEST_TIMEOUT_NS: Final = 180 * NS_PER_S


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveSpotOptions:
    """What to measure."""

    policies: tuple[Policy, ...] = tuple(Policy)
    pairs: int = 5
    seed: int = 7
    nodes: int = 4
    requests_per_s: float = 0.4
    duration_s: float = 45.0
    prompt_tokens: int = 768
    output_tokens: int = 64
    grace_ms: int = 8_000
    preempt_at_s: float = 8.0
    add_at_s: float = 20.0
    kill_at_s: float = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One policy in one pair."""

    policy: Policy
    pair: int
    requests: int
    failed: int
    ttft_p99_ms: float
    latency_p50_ms: float
    latency_p99_ms: float
    gap_max_ms: float
    """The longest pause between two tokens of one stream."""
    tokens_recomputed: int
    weight_bytes_moved: int
    kv_bytes_moved: int
    stall_ms_total: float
    """From stop to release, over all hand-overs: what a restart costs its streams."""
    handovers: int
    shapes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One policy over all pairs: medians, and the failures of all together."""

    policy: str
    ttft_p99_ms: float
    latency_p99_ms: float
    tokens_recomputed: int
    failed: int
    latency_p50_ms: float
    gap_max_ms: float
    stall_ms_total: float
    weight_mib_moved: float
    kv_mib_moved: float
    latency_p99_ms_all: tuple[float, ...]
    latency_p99_ratio_to_tideserve: float | None
    """Median over the pairs of this policy's P99 by that of tideserve in the same pair."""


@dataclass(slots=True)
class _Recomputed:
    """The newest count of each worker that ever reported, the dead included."""

    tokens: dict[str, int] = field(default_factory=dict)

    async def watch(self, fleet: Fleet) -> None:
        while True:
            for report in fleet.view.workers():
                self.tokens[report.worker_id] = report.tokens_recomputed
            await asyncio.sleep(0.1)


def measure(options: LiveSpotOptions, *, report: Callable[[str], None]) -> dict[str, object]:
    """Run the benchmark; returns what is written as JSON: rows, runs, and how they came about."""
    runs: list[Run] = []
    with tempfile.TemporaryDirectory(prefix="tideserve-live-spot-") as folder:
        model_folder = Path(folder) / "model"
        save_random_llama(model_folder, seed=options.seed)
        for pair in range(options.pairs):
            policies = options.policies
            turn = pair % len(policies)
            for policy in policies[turn:] + policies[:turn]:
                data_folder = Path(folder) / f"{pair}-{policy.value}"
                one = _OneRun(options, policy=policy, pair=pair, report=report)
                run = asyncio.run(one.measure(model_folder, data_folder))
                runs.append(run)
                report(
                    f"pair {pair + 1}, {policy.value}: P99 {run.latency_p99_ms:.0f} ms,"
                    f" {run.tokens_recomputed} tokens recomputed, {run.failed} failed"
                )
    rows = [_row(policy, runs) for policy in options.policies]
    return {
        "rows": [asdict(row) for row in rows],
        "runs": [asdict(run) for run in runs],
        "record": {**provenance("benchmarks.live_spot"), "options": asdict(options)},
    }


class _OneRun:
    def __init__(
        self,
        options: LiveSpotOptions,
        *,
        policy: Policy,
        pair: int,
        report: Callable[[str], None],
    ) -> None:
        self._options = options
        self._policy = policy
        self._pair = pair
        self._report = report
        self._clock = SystemClock()

    async def measure(self, model_folder: Path, data_folder: Path) -> Run:
        recomputed = _Recomputed()
        async with live_fleet(
            model_folder,
            data_folder,
            policy=self._policy,
            nodes=self._options.nodes,
            pinned=SHAPE,
        ) as live:
            timeline = Timeline(live.fleet.view, clock=self._clock)
            timeline.start()
            watching = asyncio.create_task(recomputed.watch(live.fleet))
            result = await self._load(live)
            watching.cancel()
            await timeline.stop()
        return self._run(result, timeline, recomputed)

    async def _load(self, live: LiveFleet) -> RunResult:
        sender = await NatsSender.connect(
            live.fleet.nats_url,
            model=ALIAS,
            run_name=f"live-spot-{self._pair}-{self._policy.value}",
            sampling=Sampling(temperature=0.0),
            streams_open_max=1000,
            clock=self._clock,
        )
        async with sender:
            limits = RunLimits(request_timeout_ns=REQUEST_TIMEOUT_NS)
            run = LoadRun(sender, limits=limits, clock=self._clock)
            striking = asyncio.create_task(self._strike(live))
            result = await run.open_loop(_requests(self._options, pair=self._pair))
            await striking
        return result

    async def _strike(self, live: LiveFleet) -> None:
        """The same times and the same nodes whatever the policy: the oldest that is left."""
        options = self._options
        started_at_ns = self._clock.now_ns()

        async def wait_until(at_s: float) -> None:
            left_ns = round(at_s * NS_PER_S) - (self._clock.now_ns() - started_at_ns)
            await asyncio.sleep(seconds(max(0, left_ns)))

        await wait_until(options.preempt_at_s)
        await live.preempt_oldest(grace_ms=options.grace_ms)
        await wait_until(options.add_at_s)
        await live.add_node()
        await wait_until(options.kill_at_s)
        await live.kill_oldest()

    def _run(self, result: RunResult, timeline: Timeline, recomputed: _Recomputed) -> Run:
        report = summarise(result, slo=Slo())
        handovers: list[HandoverSeen] = timeline.handovers
        return Run(
            policy=self._policy,
            pair=self._pair,
            requests=report.requests_sent,
            failed=report.requests_sent - report.requests[Outcome.OK] + report.requests_unsent,
            ttft_p99_ms=round(milliseconds(report.ttft.p99_ns), 1),
            latency_p50_ms=round(milliseconds(report.end_to_end.p50_ns), 1),
            latency_p99_ms=round(milliseconds(report.end_to_end.p99_ns), 1),
            gap_max_ms=round(milliseconds(report.tbt.max_ns), 1),
            tokens_recomputed=sum(recomputed.tokens.values()),
            weight_bytes_moved=sum(seen.weight_bytes for seen in handovers),
            kv_bytes_moved=sum(seen.kv_bytes for seen in handovers),
            stall_ms_total=round(sum(seen.stall_ms for seen in handovers), 1),
            handovers=len(handovers),
            shapes=tuple(seen.shape for seen in timeline.shapes),
        )


def _requests(options: LiveSpotOptions, *, pair: int) -> list[LoadRequest]:
    """The requests of one pair; every policy gets the same."""
    rng = Rng(options.seed).child(f"pair/{pair}")
    gaps = exponential_gaps(rng.child("arrivals"))
    prompts = rng.child("prompts")
    requests: list[LoadRequest] = []
    for arrival_ns in arrivals_over(gaps, steady(options.requests_per_s)):
        if arrival_ns >= options.duration_s * NS_PER_S:
            break
        prompt = tuple(prompts.randrange(1, VOCABULARY) for _ in range(options.prompt_tokens))
        requests.append(
            LoadRequest(
                index=len(requests),
                arrival_ns=arrival_ns,
                prompt=prompt,
                output_tokens=options.output_tokens,
                seed=len(requests),
            )
        )
    return requests


def _row(policy: Policy, runs: Sequence[Run]) -> Row:
    own = [run for run in runs if run.policy is policy]
    best = {run.pair: run for run in runs if run.policy is Policy.TIDESERVE}
    ratios = [run.latency_p99_ms / best[run.pair].latency_p99_ms for run in own if run.pair in best]

    def median(value: Callable[[Run], float]) -> float:
        return round(statistics.median(value(run) for run in own), 1)

    return Row(
        policy=policy.value,
        ttft_p99_ms=median(lambda run: run.ttft_p99_ms),
        latency_p99_ms=median(lambda run: run.latency_p99_ms),
        tokens_recomputed=round(median(lambda run: run.tokens_recomputed)),
        failed=sum(run.failed for run in own),
        latency_p50_ms=median(lambda run: run.latency_p50_ms),
        gap_max_ms=median(lambda run: run.gap_max_ms),
        stall_ms_total=median(lambda run: run.stall_ms_total),
        weight_mib_moved=median(lambda run: run.weight_bytes_moved / MIB),
        kv_mib_moved=median(lambda run: run.kv_bytes_moved / MIB),
        latency_p99_ms_all=tuple(run.latency_p99_ms for run in own),
        latency_p99_ratio_to_tideserve=round(statistics.median(ratios), 3) if ratios else None,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print each run to stderr, and write the JSON record."""
    defaults = LiveSpotOptions()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="file for the record; default: stdout")
    parser.add_argument("--pairs", type=int, default=defaults.pairs)
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--rate", type=float, default=defaults.requests_per_s)
    parser.add_argument("--duration", type=float, default=defaults.duration_s, help="seconds")
    parser.add_argument("--policy", choices=[policy.value for policy in Policy], action="append")
    given = parser.parse_args(arguments)
    options = LiveSpotOptions(
        policies=tuple(Policy(name) for name in given.policy or [*Policy]),
        pairs=given.pairs,
        seed=given.seed,
        requests_per_s=given.rate,
        duration_s=given.duration,
    )
    record = measure(options, report=lambda line: print(line, file=sys.stderr, flush=True))
    write_record(record, given.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
