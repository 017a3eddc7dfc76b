"""From what the operator sets to what the core is told."""

from libs.contracts.placement import Policy
from libs.engine.model_config import ModelConfig
from libs.kernel.units import NS_PER_MS
from libs.policy.liveness import LivenessOptions
from libs.policy.model_profile import ModelProfile
from libs.policy.objective import ObjectiveOptions
from libs.policy.parallel_config import SearchOptions
from libs.policy.placement_plan import PlanOptions
from services.planner.config import PlannerConfig
from services.planner.options import CapacityOptions, PlannerOptions


def planner_options(
    config: PlannerConfig,
    *,
    profile: ModelProfile,
    model: ModelConfig | None,
    planner_id: str,
    process_id: int,
) -> PlannerOptions:
    """Map the config; the paper's policies search without waiting, as the paper's code does."""
    search = SearchOptions(
        has_queueing=config.policy is Policy.TIDESERVE,
        workspace_bytes=config.workspace_bytes,
    )
    objective = ObjectiveOptions(
        losses_per_node_hour=config.losses_per_node_hour,
        gain_percent_min=config.gain_percent_min,
    )
    return PlannerOptions(
        planner_id=planner_id,
        alias=config.alias_served,
        profile=profile,
        model=model,
        plan=PlanOptions(policy=config.policy, search=search, objective=objective),
        capacity=CapacityOptions(
            nodes_max=config.nodes_max,
            nodes_min=config.nodes_min,
            nodes_extra=config.nodes_extra,
        ),
        process_id=process_id,
        nodes_expected=config.nodes_expected,
        requests_per_s_min=config.requests_per_s_min,
        report_interval_ns=config.report_interval_ms * NS_PER_MS,
        liveness=LivenessOptions(echoes_missed_max=config.reports_missed_max),
    )
