"""Settings of one planner process (`PLANNER__FIELD` in the environment)."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from libs.contracts.placement import Policy
from libs.contracts.subjects import alias_of
from libs.kernel.errors import ConfigError
from libs.runtime.config import require_at_least, require_positive
from libs.runtime.service import StoringConfig
from services.planner.options import ECHOES_MISSED_MAX

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


@dataclass(frozen=True, slots=True, kw_only=True)
class KubernetesConfig:
    """Where the provisioner of that name scales nodes: one StatefulSet per market."""

    base_url: str = "https://kubernetes.default.svc"
    """The API server; inside a cluster always this."""
    namespace: str = "default"
    """Of the StatefulSets."""
    spot_set: str = "tideserve-worker-spot"
    """Whose pods are the spot nodes; empty: there are none."""
    on_demand_set: str = "tideserve-worker-on-demand"
    """Whose pods are the on-demand nodes; empty: there are none."""
    ca_file: Path | None = SERVICE_ACCOUNT / "ca.crt"
    """Whom to trust as the API server; none trusts what the system trusts."""
    token_file: Path | None = SERVICE_ACCOUNT / "token"
    """What to show it; none shows nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannerConfig(StoringConfig):
    """What an operator sets; everything else is in PlannerOptions, with its reason."""

    planner_id: str = "planner"
    """Prefix of this process's id; a random suffix makes it unique per start."""
    model: str = ""
    """Folder of the model that the fleet serves; only its config.json is read."""
    alias: str = ""
    """What clients call the model; empty takes the folder's name."""
    policy: Policy = Policy.TIDESERVE
    """tideserve; or spotserve, reparallelize, reroute, to compare with."""
    device: Literal["cpu", "cuda"] = "cpu"
    """What the workers compute on, for a model without a measured profile."""
    profile: str | None = None
    """File that `tideserve profile` wrote; auto looks for the latest of this model on such a device
    in the user's cache; none assumes times from the model's size."""
    requests_per_s_min: float = 0.5
    """Planned for even when less arrives, so that a quiet night does not reshape the fleet."""
    workspace_bytes: int = 0
    """Of each worker's memory, kept free of weights and KV."""
    losses_per_node_hour: float = 0.6
    """How often a node is expected to be lost: 74 times in 10.6 h of 12 nodes in a real trace."""
    gain_percent_min: int = 10
    """A change of shape must better the objective by this much (policy tideserve)."""
    provisioner: Literal["none", "local", "kubernetes"] = "none"
    """Who gets nodes: nobody, the launcher on this machine, or Kubernetes."""
    nodes_max: int = 0
    """Most nodes to ask for; 0 asks for none and takes the fleet as it is."""
    nodes_min: int = 1
    """Nodes to keep whatever the demand."""
    nodes_extra: int = 1
    """Spot nodes beyond the need, for the next preemption."""
    nodes_expected: int = 0
    """Nodes that start together: the first placement waits for them, for 20 s from the first."""
    kubernetes: KubernetesConfig = field(default_factory=KubernetesConfig)
    """Used where the provisioner is kubernetes."""
    report_interval_ms: int = 200
    """Heartbeat; planners count missed ones, so all processes of a fleet use the same."""
    reports_missed_max: int = ECHOES_MISSED_MAX
    """Reports in a row after which a silent worker, or the leader, counts as dead."""

    def __post_init__(self) -> None:
        StoringConfig.__post_init__(self)  # a class with slots has no super() without arguments
        if not self.model:
            raise ConfigError("model: name the model's folder")
        require_positive(self, "requests_per_s_min")
        require_at_least(1, self, "report_interval_ms", "reports_missed_max")
        require_at_least(
            0,
            self,
            "workspace_bytes",
            "losses_per_node_hour",
            "nodes_max",
            "nodes_extra",
            "nodes_expected",
        )
        if not 0 <= self.gain_percent_min < 100:
            raise ConfigError("gain_percent_min: must be from 0 to 99")
        if self.nodes_max and not 1 <= self.nodes_min <= self.nodes_max:
            raise ConfigError("nodes_min: must be from 1 to nodes_max")
        if self.provisioner != "none" and not self.nodes_max:
            raise ConfigError("nodes_max: say how many nodes the provisioner may get")

    @property
    def alias_served(self) -> str:
        """The alias, as a subject token."""
        return alias_of(self.alias or Path(self.model).expanduser().resolve().name)
