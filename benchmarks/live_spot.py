"""Four ways to follow nodes that come and go, compared live: same arrivals, same notices.

    python -m benchmarks.live_spot --json FILE

Real processes: broker, router, planner, migrator, and one worker a node, with a random llama of
100M parameters in replicas of two stages. In each pair every policy gets a fresh fleet and the same
minute: requests at nearly even gaps, and at fixed times nodes under notice and further nodes, as in
the files and traces of the paper. The order of the policies rotates from pair to pair. Latency
counts from sending to the last token; what failed counts as failed and not as fast.

The load is one that the fleet carries undisturbed: `--calm` shows how fast it is then. Every run is
written to the file when it ends, and a run of the same options and commit goes on from there.
"""

import asyncio
import contextlib
import json
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Final

from pydantic import TypeAdapter

from benchmarks.engine import VOCABULARY, save_random_llama
from benchmarks.live_fleet import ALIAS, LiveFleet, live_fleet
from benchmarks.live_spot_rows import RE_PREFILL, RequestSeen, Run, parts_of, row_of
from benchmarks.provenance import provenance, record_parser, write_record
from libs.contracts.handover_record import HandoverStory
from libs.contracts.placement import PinnedShape, Policy
from libs.kernel.errors import ConfigError
from libs.kernel.rng import Rng
from libs.kernel.units import NS_PER_S, milliseconds, seconds
from libs.runtime.clock import SystemClock
from loadgen.arrivals import arrivals_over, gamma_gaps, steady
from loadgen.clients.over_nats import NatsSender
from loadgen.clients.sampling import Sampling
from loadgen.records import Outcome, RequestRecord, RunResult
from loadgen.report import Slo, summarise
from loadgen.run import LoadRun, RunLimits
from loadgen.workload import LoadRequest
from services.launcher.demo_timeline import Timeline
from services.launcher.fleet import Fleet

SHAPE: Final = PinnedShape(stages=2, shards=1)
"""Pinned, so that every policy has the same replicas: of two workers, as of a larger model."""
REQUEST_TIMEOUT_NS: Final = 180 * NS_PER_S
COUNTED_TIMEOUT_NS: Final = 2 * NS_PER_S
"""Reports come every 200 ms; the last ones of a node that was killed never do."""
WARM_UP_OUTPUT_TOKENS: Final = 8


class Strike(StrEnum):
    """What the cloud does."""

    NOTICE = "notice"
    """The node that has been there longest is told that it ends."""
    ADDITION = "addition"
    """One more node comes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveSpotOptions:
    """What to measure."""

    policies: tuple[Policy, ...] = tuple(Policy)
    pairs: int = 5
    seed: int = 7
    nodes: int = 4
    requests_per_s: float = 0.2
    arrivals_cv: float = 0.05
    """As even as the arrivals in the paper's own files: a burst would queue under any policy."""
    duration_s: float = 60.0
    prompt_tokens: int = 1_024
    output_tokens: int = 32
    """Half of what Azure's trace of code completions has on average, and as many: 2,048 and 28."""
    grace_ms: int = 8_000
    strikes: tuple[tuple[float, Strike], ...] = (
        (8.0, Strike.NOTICE),
        (18.0, Strike.ADDITION),
        (28.0, Strike.NOTICE),
        (38.0, Strike.ADDITION),
        (48.0, Strike.NOTICE),
        (58.0, Strike.ADDITION),
    )
    """Seconds from the first moment of the load, and what happens then."""


@dataclass(slots=True)
class _Computed:
    """The newest count of each worker that ever reported, the dead included."""

    tokens: dict[str, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        return sum(self.tokens.values())

    async def watch(self, fleet: Fleet) -> None:
        while True:
            for report in fleet.view.workers():
                self.tokens[report.worker_id] = report.tokens_online
            await fleet.view.wait_for_change()

    async def wait_for(self, tokens: int, fleet: Fleet) -> None:
        """Return when so much has been reported, or will not be any more."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds(COUNTED_TIMEOUT_NS)):
                while self.total < tokens:
                    await fleet.view.wait_for_change()


class RunBook:
    """The runs so far, kept in the file of the record, so that a benchmark cut short goes on."""

    def __init__(self, options: LiveSpotOptions, path: Path | None) -> None:
        self._options = options
        self._path = path
        self._record = {
            **provenance("benchmarks.live_spot"),
            "options": json.loads(json.dumps(asdict(options))),
        }
        self.runs: list[Run] = self._read()

    def add(self, run: Run) -> None:
        """Keep one more run, in the file too."""
        self.runs.append(run)
        if self._path is not None:
            write_record(self.record(), self._path)

    def has(self, policy: Policy, pair: int) -> bool:
        """Whether this run is done."""
        return any(run.policy is policy and run.pair == pair for run in self.runs)

    def record(self) -> dict[str, object]:
        """Return what is written as JSON: rows, runs, and how they came about."""
        measured = [p for p in self._options.policies if any(r.policy is p for r in self.runs)]
        return {
            "rows": [asdict(row_of(policy, self.runs)) for policy in measured],
            "runs": [asdict(run) for run in self.runs],
            "record": self._record,
        }

    def _read(self) -> list[Run]:
        if self._path is None or not self._path.exists():
            return []
        kept = json.loads(self._path.read_text(encoding="utf-8"))
        for name in ("options", "commit"):
            if kept["record"][name] != self._record[name]:
                raise ConfigError(f"{self._path}: holds runs of other {name}; give another file")
        return TypeAdapter(list[Run]).validate_python(kept["runs"])


def measure(
    options: LiveSpotOptions,
    *,
    report: Callable[[str], None],
    path: Path | None = None,
    runs_max: int | None = None,
) -> dict[str, object]:
    """Make the runs that the file lacks, at most so many; returns what is written as JSON."""
    book = RunBook(options, path)
    lacking = [turn for turn in _turns(options) if not book.has(*turn)]
    with tempfile.TemporaryDirectory(prefix="tideserve-live-spot-") as folder:
        model_folder = Path(folder) / "model"
        save_random_llama(model_folder, seed=options.seed)
        for policy, pair in lacking[:runs_max]:
            one = _OneRun(options, policy=policy, pair=pair)
            data_folder = Path(folder) / f"{pair}-{policy.value}"
            run = asyncio.run(one.measure(model_folder, data_folder))
            book.add(run)
            report(
                f"pair {pair + 1}, {policy.value}: {run.requests} requests,"
                f" latency P50 {run.latency_p50_ms:.0f} and P99 {run.latency_p99_ms:.0f} ms,"
                f" {run.tokens_recomputed} tokens recomputed, {run.failed} failed"
            )
    return book.record()


def _turns(options: LiveSpotOptions) -> list[tuple[Policy, int]]:
    """Every policy once in each pair, each pair beginning with another one."""
    turns: list[tuple[Policy, int]] = []
    for pair in range(options.pairs):
        first = pair % len(options.policies)
        rotated = options.policies[first:] + options.policies[:first]
        turns += [(policy, pair) for policy in rotated]
    return turns


class _OneRun:
    def __init__(self, options: LiveSpotOptions, *, policy: Policy, pair: int) -> None:
        self._options = options
        self._policy = policy
        self._pair = pair
        self._clock = SystemClock()

    async def measure(self, model_folder: Path, data_folder: Path) -> Run:
        async with (
            live_fleet(
                model_folder,
                data_folder,
                policy=self._policy,
                nodes=self._options.nodes,
                pinned=SHAPE,
            ) as live,
            await self._sender(live, "load") as sender,
        ):
            computed = _Computed()
            watching = asyncio.create_task(computed.watch(live.fleet))
            warm_up = await self._warm_up(live)
            known = {story.handover_id for story in await live.handovers_ended()}
            timeline = Timeline(live.fleet.view, clock=self._clock)
            timeline.start()
            result = await self._load(live, sender)
            await timeline.stop()
            needed = _tokens_needed(warm_up) + _tokens_needed(result.records)
            await computed.wait_for(needed, live.fleet)
            watching.cancel()
            stories = [s for s in await live.handovers_ended() if s.handover_id not in known]
        return self._run(
            result,
            stories,
            shapes=tuple(seen.shape for seen in timeline.shapes),
            recomputed=max(0, computed.total - needed),
            prefill_ns=max(1, warm_up[-1].ttft_ns or 0),
        )

    async def _sender(self, live: LiveFleet, name: str) -> NatsSender:
        """Connect under a name that request ids are made of: no two runs may share one."""
        return await NatsSender.connect(
            live.fleet.nats_url,
            model=ALIAS,
            run_name=f"live-spot-{self._pair}-{self._policy.value}-{name}",
            sampling=Sampling(temperature=0.0),
            streams_open_max=1000,
            clock=self._clock,
        )

    async def _warm_up(self, live: LiveFleet) -> list[RequestRecord]:
        """Let every replica compute once, then one alone: its first token times a prefill."""
        replicas = self._options.nodes // (SHAPE.stages * SHAPE.shards)
        options = replace(self._options, output_tokens=WARM_UP_OUTPUT_TOKENS)
        rng = Rng(self._options.seed).child("warm-up")
        records: list[RequestRecord] = []
        for count in (replicas, 1):
            requests = _requests(options, arrivals=[0] * count, rng=rng)
            async with await self._sender(live, f"warm-up-{count}") as sender:
                records += (await self._load_run(sender).open_loop(requests)).records
        for record in records:
            if record.ending.outcome is not Outcome.OK:
                raise ConfigError(f"the fleet does not answer: {record.ending.explanation}")
        return records

    def _load_run(self, sender: NatsSender) -> LoadRun:
        limits = RunLimits(request_timeout_ns=REQUEST_TIMEOUT_NS)
        return LoadRun(sender, limits=limits, clock=self._clock)

    async def _load(self, live: LiveFleet, sender: NatsSender) -> RunResult:
        options = self._options
        rng = Rng(options.seed).child(f"pair/{self._pair}")
        gaps = gamma_gaps(rng.child("arrivals"), cv=options.arrivals_cv)
        arrivals: list[int] = []
        for arrival_ns in arrivals_over(gaps, steady(options.requests_per_s)):
            if arrival_ns >= options.duration_s * NS_PER_S:
                break
            arrivals.append(arrival_ns)
        requests = _requests(options, arrivals=arrivals, rng=rng.child("prompts"))
        striking = asyncio.create_task(self._strike(live))
        result = await self._load_run(sender).open_loop(requests)
        await striking
        return result

    async def _strike(self, live: LiveFleet) -> None:
        """The same times and the same nodes whatever the policy."""
        started_at_ns = self._clock.now_ns()
        for at_s, strike in self._options.strikes:
            left_ns = round(at_s * NS_PER_S) - (self._clock.now_ns() - started_at_ns)
            await asyncio.sleep(seconds(max(0, left_ns)))
            match strike:
                case Strike.NOTICE:
                    await live.preempt_oldest(grace_ms=self._options.grace_ms)
                case Strike.ADDITION:
                    await live.add_node()

    def _run(
        self,
        result: RunResult,
        stories: Sequence[HandoverStory],
        *,
        shapes: tuple[str, ...],
        recomputed: int,
        prefill_ns: int,
    ) -> Run:
        report = summarise(result, slo=Slo())
        prefill_tokens_per_s = self._options.prompt_tokens * NS_PER_S / prefill_ns
        re_prefill_ns = recomputed * prefill_ns // self._options.prompt_tokens
        re_prefill = {RE_PREFILL: round(milliseconds(re_prefill_ns), 1)}
        return Run(
            policy=self._policy,
            pair=self._pair,
            requests=report.requests_sent,
            failed=report.requests_sent - report.requests[Outcome.OK] + report.requests_unsent,
            ttft_p99_ms=round(milliseconds(report.ttft.p99_ns), 1),
            latency_p50_ms=round(milliseconds(report.end_to_end.p50_ns), 1),
            latency_p99_ms=round(milliseconds(report.end_to_end.p99_ns), 1),
            gap_max_ms=round(milliseconds(report.tbt.max_ns), 1),
            tokens_recomputed=recomputed,
            prefill_tokens_per_s=round(prefill_tokens_per_s, 1),
            weight_bytes_from_peers=sum(s.totals.weight_bytes_from_peers for s in stories),
            weight_bytes_from_disk=sum(s.totals.weight_bytes_from_disk for s in stories),
            kv_bytes_moved=sum(s.totals.kv_bytes_moved for s in stories),
            stall_ms_total=round(sum(milliseconds(s.stall_ns) for s in stories), 1),
            parts_ms=parts_of(stories, is_stalled_only=False) | re_prefill,
            parts_stalled_ms=parts_of(stories, is_stalled_only=True) | re_prefill,
            handovers=len(stories),
            shapes=shapes,
            seen=tuple(_seen(r) for r in sorted(result.records, key=lambda r: r.index)),
        )


def _requests(options: LiveSpotOptions, *, arrivals: Iterable[int], rng: Rng) -> list[LoadRequest]:
    return [
        LoadRequest(
            index=index,
            arrival_ns=arrival_ns,
            prompt=tuple(rng.randrange(1, VOCABULARY) for _ in range(options.prompt_tokens)),
            output_tokens=options.output_tokens,
            seed=index,
        )
        for index, arrival_ns in enumerate(arrivals)
    ]


def _tokens_needed(records: Iterable[RequestRecord]) -> int:
    """Tokens computed for these answers, had nothing happened: the last one is only sampled."""
    return sum((r.prompt_tokens or 0) + max(0, r.output_tokens - 1) for r in records)


def _seen(record: RequestRecord) -> RequestSeen:
    ttft_ns = record.ttft_ns
    return RequestSeen(
        sent_s=round(seconds(record.sent_at_ns), 3),
        ttft_ms=None if ttft_ns is None else round(milliseconds(ttft_ns), 1),
        latency_ms=round(milliseconds(record.end_to_end_ns), 1),
        pause_max_ms=round(milliseconds(max(record.gaps_ns(), default=0)), 1),
        is_ok=record.ending.outcome is Outcome.OK,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print each run to stderr, and write the JSON record."""
    defaults = LiveSpotOptions()
    parser = record_parser(__doc__)
    parser.add_argument("--pairs", type=int, default=defaults.pairs)
    parser.add_argument("--runs-max", type=int, help="make at most so many runs, then stop")
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--rate", type=float, default=defaults.requests_per_s)
    parser.add_argument("--duration", type=float, default=defaults.duration_s, help="seconds")
    parser.add_argument("--policy", choices=[policy.value for policy in Policy], action="append")
    parser.add_argument("--calm", action="store_true", help="no node comes or goes")
    given = parser.parse_args(arguments)
    options = LiveSpotOptions(
        policies=tuple(Policy(name) for name in given.policy or [*Policy]),
        pairs=given.pairs,
        seed=given.seed,
        requests_per_s=given.rate,
        duration_s=given.duration,
        strikes=() if given.calm else defaults.strikes,
    )
    record = measure(
        options,
        report=lambda line: print(line, file=sys.stderr, flush=True),
        path=given.json,
        runs_max=given.runs_max,
    )
    if given.json is None:
        write_record(record, None)
    return 0


if __name__ == "__main__":
    sys.exit(main())
