"""From the options of a run to those of the deciding cores."""

from typing import Final

from libs.kernel.units import NS_PER_S
from libs.policy.cost_model import batch_times
from libs.policy.liveness import LivenessOptions
from libs.policy.shapes import ReplicaShape
from services.migrator.options import MigratorOptions
from services.planner.options import ECHOES_MISSED_MAX, CapacityOptions, PlannerOptions
from services.simulator.spot.options import SpotRunOptions
from services.simulator.spot.worker import ALIAS

NEVER_NS: Final = 10**18
"""No silence is an outage: rounds may be seconds apart, and nothing is lost on the way."""


def planner_options(options: SpotRunOptions) -> PlannerOptions:
    """Return the planner's, which asks for nodes where the run has a market."""
    return PlannerOptions(
        planner_id="planner-1",
        alias=ALIAS,
        profile=options.profile,
        plan=options.plan,
        model=options.model,
        requests_per_s_min=options.requests_per_s_target,
        capacity=options.capacity or CapacityOptions(),
        liveness=_liveness(ECHOES_MISSED_MAX),
    )


def migrator_options(options: SpotRunOptions) -> MigratorOptions:
    """Return the migrator's, with the links and the prefill of the hardware."""
    profile = options.profile
    shape = ReplicaShape(stages=1, shards=min(profile.times_by_shards))
    prefill_ns = batch_times(profile, shape, batch=1).prefill_ns
    return MigratorOptions(
        migrator_id="migrator-1",
        alias=ALIAS,
        echo_age_max_ns=NEVER_NS,
        activation_ns=options.hardware.group_setup_ns,
        link_bytes_per_s=options.hardware.network_bytes_per_s,
        prefill_tokens_per_s=max(1, profile.prompt_tokens * NS_PER_S // prefill_ns),
        model_bytes=profile.size,
        liveness=_liveness(LivenessOptions().echoes_missed_max),
    )


def _liveness(echoes_missed_max: int) -> LivenessOptions:
    return LivenessOptions(echoes_missed_max=echoes_missed_max, outage_ns=NEVER_NS)
