"""What a simulated run consists of: load, fleet, and which faults the seed switches on.

Swarm testing: a seed switches whole kinds of fault off and draws the rates of the others, so that
seeds differ in kind, not only in luck. Source: FoundationDB's and TigerBeetle's simulators.
"""

from dataclasses import dataclass, field

from libs.kernel.rng import Rng
from libs.kernel.units import NS_PER_MS, NS_PER_S
from libs.sim.broker import NetworkOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultOptions:
    """Mean time between faults of each kind; None is a kind that does not happen."""

    worker_kill_ns: int | None = None
    worker_pause_ns: int | None = None
    router_kill_ns: int | None = None
    router_pause_ns: int | None = None
    broker_outage_ns: int | None = None
    pause_ns_max: int = 8 * NS_PER_S
    outage_ns_max: int = 8 * NS_PER_S
    replace_after_ns: int = 1_500 * NS_PER_MS
    """A killed process is replaced by a new one after this long."""
    replace_fails_probability: float = 0.1
    """A replacement that takes ten times as long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScenarioOptions:
    """One run, completely: equal options give equal histories."""

    seed: int
    requests: int = 60
    arrival_window_ns: int = 20 * NS_PER_S
    routers: int = 2
    workers: int = 3
    prompt_tokens_max: int = 200
    output_tokens_max: int = 48
    cancel_probability: float = 0.05
    offline_probability: float = 0.3
    """Of a request, to be offline work, which gives way to the rest."""
    blocks_total: int = 160
    block_tokens: int = 8
    settle_ns_max: int = 240 * NS_PER_S
    """After the last arrival the faults end, and everything must be over within this."""
    actions_max: int = 20_000_000
    network: NetworkOptions = field(default_factory=NetworkOptions)
    faults: FaultOptions = field(default_factory=FaultOptions)


def swarm_scenario(*, seed: int, requests: int) -> ScenarioOptions:
    """Draw a scenario from the seed: fleet size, network and faults."""
    rng = Rng(seed).child("scenario")
    faults = FaultOptions(
        worker_kill_ns=_rate(rng, 2, 10),
        worker_pause_ns=_rate(rng, 4, 20),
        router_kill_ns=_rate(rng, 4, 20),
        router_pause_ns=_rate(rng, 4, 20),
        broker_outage_ns=_rate(rng, 10, 30),
        replace_after_ns=rng.randint(200, 4_000) * NS_PER_MS,
    )
    network = NetworkOptions(
        is_ordered=rng.random() < 0.7,
        delay_ns_max=rng.choice((1, 5, 30)) * NS_PER_MS,
        spike_probability=rng.choice((0.0, 0.01, 0.05)),
        loss_probability=rng.choice((0.0, 0.01, 0.05)),
        double_probability=rng.choice((0.0, 0.02, 0.1)),
        call_loss_probability=rng.choice((0.0, 0.01, 0.05)),
    )
    return ScenarioOptions(
        seed=seed,
        requests=requests,
        routers=rng.randint(1, 3),
        workers=rng.randint(1, 4),
        blocks_total=rng.choice((48, 160, 1_000)),
        cancel_probability=rng.choice((0.0, 0.1)),
        network=network,
        faults=faults,
    )


def _rate(rng: Rng, seconds_min: int, seconds_max: int) -> int | None:
    """Draw a mean time between faults, or none of this kind at all in one run of three."""
    if rng.random() < 1 / 3:
        return None
    return rng.randint(seconds_min, seconds_max) * NS_PER_S
