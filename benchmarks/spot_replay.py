"""Does the simulator predict the live stack? A live comparison, replayed in virtual time.

    python -m benchmarks.spot_replay LIVE.json --profile PROFILE.json [--json FILE]

LIVE.json is what `bench live-spot` wrote: of every run the policy, when its requests were sent and
how long they took, and of all runs the notices and additions. PROFILE.json is what `tideserve
profile` measured of the same model on the same machine. Each run is simulated with the arrivals
that it had; nothing that it took is told to the simulator. Printed are throughput and P99 of both,
and by how much the prediction is off.

What bounds it: the profile is that of one worker alone. Workers, router and broker of the live
fleet share the processor's cores, which the simulated ones do not.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ValidationError
from rich.table import Table

from benchmarks.provenance import provenance, record_parser, write_record
from libs.contracts.placement import Policy
from libs.contracts.wire import describe
from libs.kernel.errors import ConfigError
from libs.kernel.units import MIB, NS_PER_MS, NS_PER_S, seconds
from libs.policy.measured_profile import measured_profile_of_json, planning_profile
from libs.policy.model_profile import ModelProfile
from libs.policy.parallel_config import SearchOptions
from libs.policy.placement_plan import PlanOptions
from libs.policy.shapes import ReplicaShape
from services.launcher.console import RESULTS
from services.simulator.spot.hardware import Hardware, RestartCosts
from services.simulator.spot.options import Arrival, EngineKind, SpotRunOptions
from services.simulator.spot.outcome import percentile
from services.simulator.spot.run import run_spot
from services.simulator.spot.trace import NodeSpan, NodeTrace

SHAPE: Final = ReplicaShape(stages=2, shards=1)
"""Pinned by the live comparison, too."""
SEQUENCES_MAX: Final = 64
STEP_TOKENS_MAX: Final = 512
REQUESTS_PER_S_MIN: Final = 0.5
"""These three are the live services' defaults."""
DRAIN_NS: Final = 600 * NS_PER_S
THIS_MACHINE: Final = Hardware(
    name="this-machine",
    source="links: benchmarks/results/2026-11-21-transfer.json, TCP at 16 MiB; the rest: what a "
    "worker process of such a fleet takes to start, to read its share from the page cache and to "
    "form a group over gloo, each to one digit",
    gpus_per_node=1,
    gpu_bytes=4_096 * MIB,
    network_bytes_per_s=1_770_000_000,
    local_bytes_per_s=1_770_000_000,
    disk_bytes_per_s=1_000_000_000,
    launch_ns=6 * NS_PER_S,
    group_setup_ns=100 * NS_PER_MS,
    restart=RestartCosts(daemons_ns=0, engine_ns=0, group_ns=0),
    spot_usd_per_hour=0.0,
    on_demand_usd_per_hour=0.0,
)


class SeenRequest(BaseModel):
    """One request of a live run."""

    sent_s: float
    latency_ms: float
    is_ok: bool


class SeenRun(BaseModel):
    """One live run of one policy."""

    policy: Policy
    pair: int
    seen: tuple[SeenRequest, ...]


class LiveOptions(BaseModel):
    """What all runs had in common."""

    nodes: int
    prompt_tokens: int
    output_tokens: int
    grace_ms: int
    strikes: tuple[tuple[float, Literal["notice", "addition"]], ...]
    """Seconds, and what the cloud did then: to the node that had been there longest."""


class LiveHead(BaseModel):
    """How the runs came about."""

    command: str
    commit: str
    date: str
    options: LiveOptions


class LiveRecord(BaseModel):
    """What `bench live-spot` wrote, as far as it is needed here."""

    runs: tuple[SeenRun, ...]
    record: LiveHead


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Of one run, live or simulated."""

    requests_ok: int
    tokens_per_s: float
    """Of the answers, from the first request to the last token."""
    avg_s: float
    p99_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One run, measured and predicted."""

    policy: str
    pair: int
    measured: Figures
    predicted: Figures

    @property
    def tokens_per_s_error(self) -> float:
        """By which part of the measured throughput the prediction is off; above 0: too high."""
        return self.predicted.tokens_per_s / self.measured.tokens_per_s - 1

    @property
    def p99_error(self) -> float:
        """The same of the P99 latency."""
        return self.predicted.p99_s / self.measured.p99_s - 1


def read_live(path: Path) -> LiveRecord:
    """Read the record of a live comparison. Raises: ConfigError naming file and field."""
    try:
        return LiveRecord.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except ValidationError as error:
        raise ConfigError(f"{path}: not a record of live-spot: {describe(error)}") from None


def compare(run: SeenRun, options: LiveOptions, profile: ModelProfile) -> Comparison:
    """Simulate one live run and put both beside each other. Raises: ConfigError if none ended."""
    measured = [(seen.sent_s, seen.latency_ms / 1e3) for seen in run.seen if seen.is_ok]
    if not measured:
        raise ConfigError(f"pair {run.pair}, {run.policy.value}: no request was answered")
    simulated = run_spot(simulation_of(run, options, profile))
    predicted = [
        (seconds(r.arrived_at_ns - simulated.begins_at_ns), seconds(r.latency_ns))
        for r in simulated.requests
        if r.latency_ns is not None
    ]
    return Comparison(
        policy=run.policy.value,
        pair=run.pair,
        measured=_figures(measured, output_tokens=options.output_tokens),
        predicted=_figures(predicted, output_tokens=options.output_tokens),
    )


def simulation_of(run: SeenRun, options: LiveOptions, profile: ModelProfile) -> SpotRunOptions:
    """Return the same fleet, arrivals and notices for the simulator."""
    arrivals = sorted(round(seen.sent_s * NS_PER_S) for seen in run.seen)
    return SpotRunOptions(
        seed=run.pair,
        profile=profile,
        hardware=THIS_MACHINE,
        trace=trace_of(options, end_at_ns=arrivals[-1] + DRAIN_NS),
        arrivals=tuple(
            Arrival(
                at_ns=at_ns,
                prompt_tokens=options.prompt_tokens,
                output_tokens=options.output_tokens,
            )
            for at_ns in arrivals
        ),
        plan=PlanOptions(policy=run.policy, search=SearchOptions(shape_only=SHAPE)),
        engine=EngineKind.CONTINUOUS,
        requests_per_s_target=REQUESTS_PER_S_MIN,
        is_demand_measured=True,
        batch_max=SEQUENCES_MAX,
        step_tokens_max=STEP_TOKENS_MAX,
        prefill_chunks=SHAPE.stages,
        grace_ns=options.grace_ms * NS_PER_MS,
    )


def trace_of(options: LiveOptions, *, end_at_ns: int) -> NodeTrace:
    """Let nodes come and go as they did: the one that was there longest has the notice."""
    spans = [NodeSpan(node_id=f"node-{n}", usable_at_ns=0) for n in range(options.nodes)]
    oldest = 0
    for at_s, strike in options.strikes:
        at_ns = round(at_s * NS_PER_S)
        match strike:
            case "notice":
                gone_at_ns = at_ns + options.grace_ms * NS_PER_MS
                spans[oldest] = replace(spans[oldest], gone_at_ns=gone_at_ns)
                oldest += 1
            case "addition":
                usable_at_ns = at_ns + THIS_MACHINE.launch_ns
                spans.append(NodeSpan(node_id=f"node-{len(spans)}", usable_at_ns=usable_at_ns))
    return NodeTrace(name="live", spans=tuple(spans), end_at_ns=end_at_ns)


def _figures(requests: Sequence[tuple[float, float]], *, output_tokens: int) -> Figures:
    """Sum up pairs of sending and latency in seconds."""
    latencies = sorted(latency for _, latency in requests)
    took = max(sent + latency for sent, latency in requests) - min(sent for sent, _ in requests)
    return Figures(
        requests_ok=len(requests),
        tokens_per_s=round(len(requests) * output_tokens / took, 2),
        avg_s=round(sum(latencies) / len(latencies), 3),
        p99_s=percentile(latencies, 99),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Replay every run, print the table and write the record."""
    parser = record_parser(__doc__)
    parser.add_argument("live", type=Path, help="record of `bench live-spot`")
    parser.add_argument("--profile", type=Path, required=True, help="of `tideserve profile`")
    given = parser.parse_args(arguments)
    live = read_live(given.live)
    profile = _read_profile(given.profile, live.record.options)
    rows = [compare(run, live.record.options, profile) for run in live.runs]
    RESULTS.print(_table(rows))
    if given.json is not None:
        head = live.record.model_dump(mode="json")
        record = {**provenance("benchmarks.spot_replay"), "live": head}
        write_record({**record, "rows": [_json(row) for row in rows]}, given.json)
    return 0


def _read_profile(path: Path, options: LiveOptions) -> ModelProfile:
    """Return the profile for the requests of the live runs. Raises: ConfigError naming the file."""
    try:
        measured = measured_profile_of_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    return planning_profile(
        measured, prompt_tokens=options.prompt_tokens, output_tokens=options.output_tokens
    )


def _json(row: Comparison) -> dict[str, object]:
    errors = {"tokens_per_s_error": row.tokens_per_s_error, "p99_error": row.p99_error}
    return {**asdict(row), **{name: round(error, 3) for name, error in errors.items()}}


def _table(rows: Sequence[Comparison]) -> Table:
    table = Table("policy", "pair")
    for name in ("tokens/s live", "simulated", "off", "P99 s live", "simulated", "off"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            row.policy,
            str(row.pair),
            f"{row.measured.tokens_per_s:.1f}",
            f"{row.predicted.tokens_per_s:.1f}",
            f"{row.tokens_per_s_error:+.0%}",
            f"{row.measured.p99_s:.1f}",
            f"{row.predicted.p99_s:.1f}",
            f"{row.p99_error:+.0%}",
        )
    return table


if __name__ == "__main__":
    sys.exit(main())
