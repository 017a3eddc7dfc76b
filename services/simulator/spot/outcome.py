"""What a run comes to: latencies, losses, costs."""

from dataclasses import asdict, dataclass
from statistics import fmean

from libs.contracts.reports import Market
from libs.kernel.units import NS_PER_S, seconds
from services.simulator.spot.run import SpotRun

HOUR_NS = 3_600 * NS_PER_S


@dataclass(frozen=True, slots=True, kw_only=True)
class SpotOutcome:
    """The figures of one run; seconds, US dollars, bytes and counts."""

    policy: str
    model: str
    trace: str
    seed: int
    requests: int
    failed: int
    """Not finished when the drain ended."""
    avg_s: float
    p50_s: float
    p99_s: float
    ttft_p99_s: float
    tokens: int
    """Prompt and answer of what finished."""
    tokens_recomputed: int
    usd: float
    usd_per_1k_tokens: float
    handovers_done: int
    handovers_abandoned: int
    kv_gb_moved: float
    weights_gb_from_peers: float
    weights_gb_from_disk: float
    virtual_s: float
    digest: str

    def as_json(self) -> dict[str, str | int | float]:
        """Return the fields for machines."""
        return asdict(self)


def outcome_of(run: SpotRun, *, policy: str) -> SpotOutcome:
    """Work the figures out. Requests that failed count in `failed` and in no latency."""
    options, fleet = run.options, run.fleet
    done = [request for request in run.requests if request.finished_at_ns is not None]
    latencies = sorted(seconds(r.latency_ns) for r in done if r.latency_ns is not None)
    firsts = sorted(
        seconds(r.first_token_at_ns - r.arrived_at_ns)
        for r in done
        if r.first_token_at_ns is not None
    )
    tokens = sum(request.prompt_tokens + request.output_tokens for request in done)
    usd = cost_usd(run)
    record = fleet.control.record
    return SpotOutcome(
        policy=policy,
        model=options.profile.name,
        trace=options.trace.name,
        seed=options.seed,
        requests=len(run.requests),
        failed=len(run.requests) - len(done),
        avg_s=round(fmean(latencies), 3) if latencies else 0.0,
        p50_s=percentile(latencies, 50),
        p99_s=percentile(latencies, 99),
        ttft_p99_s=percentile(firsts, 99),
        tokens=tokens,
        tokens_recomputed=sum(request.tokens_recomputed for request in run.requests),
        usd=round(usd, 4),
        usd_per_1k_tokens=round(1_000 * usd / tokens, 6) if tokens else 0.0,
        handovers_done=0 if record is None else record.handovers_done,
        handovers_abandoned=0 if record is None else record.handovers_abandoned,
        kv_gb_moved=round(fleet.copies.bytes_moved / 1e9, 3),
        weights_gb_from_peers=round(fleet.weight_bytes_from_peers / 1e9, 1),
        weights_gb_from_disk=round(fleet.weight_bytes_from_disk / 1e9, 1),
        virtual_s=round(seconds(fleet.world.now_ns - run.begins_at_ns), 3),
        digest=run.digest,
    )


def cost_usd(run: SpotRun) -> float:
    """Return what the nodes cost from the beginning of the trace to its end."""
    trace, hardware, market = run.options.trace, run.options.hardware, run.fleet.market
    if market is None:
        on_demand_ns = trace.on_demand_node_ns
        spot_ns = trace.node_ns - on_demand_ns
    else:
        on_demand_ns = market.paid_ns(Market.ON_DEMAND)
        spot_ns = market.paid_ns(Market.SPOT)
    return (
        spot_ns * hardware.spot_usd_per_hour + on_demand_ns * hardware.on_demand_usd_per_hour
    ) / HOUR_NS


def percentile(ascending: list[float], percent: int) -> float:
    """Return the value that so many per cent lie below, as the artifact counts: by index."""
    if not ascending:
        return 0.0
    return round(ascending[min(len(ascending) - 1, len(ascending) * percent // 100)], 3)
