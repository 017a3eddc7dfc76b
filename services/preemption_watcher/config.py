"""Settings of one watcher process (`PREEMPTION_WATCHER__FIELD` in the environment)."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from libs.kernel.errors import ConfigError
from libs.kernel.units import NS_PER_MS
from libs.runtime.config import require_at_least
from libs.runtime.service import ServiceConfig

SourceName = Literal[
    "manual", "aws", "gcp", "azure", "kubernetes", "slurm", "eventbridge-sqs", "trace"
]
SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


@dataclass(frozen=True, slots=True, kw_only=True)
class AwsConfig:
    """The instance metadata service of EC2."""

    base_url: str = "http://169.254.169.254"
    """Another one for a test or a proxy of the service."""
    poll_interval_ms: int = 5_000
    """What AWS recommends; a notice comes late by as much."""
    is_rebalance_heard: bool = True
    """Whether a rebalance recommendation is a notice; it often comes earlier, and often in vain."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GcpConfig:
    """The metadata server of Compute Engine."""

    base_url: str = "http://metadata.google.internal"
    """Another one for a test."""
    grace_ms: int = 30_000
    """What a preemption leaves. On GKE ordinary pods get 15 s of it: set 15000 there."""
    maintenance_grace_ms: int = 3_600_000
    """What host maintenance leaves a VM with a GPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AzureConfig:
    """The instance metadata service of Azure."""

    base_url: str = "http://169.254.169.254"
    """Another one for a test."""
    poll_interval_ms: int = 1_000
    """What Microsoft recommends."""
    vm_name: str = ""
    """As Azure names this machine in its events; empty asks the service."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KubernetesConfig:
    """The API server, asked about one node and, where it is named, one pod."""

    base_url: str = "https://kubernetes.default.svc"
    """Inside a cluster always this."""
    node_name: str = ""
    """The Node to watch: spec.nodeName by the downward API."""
    pod_name: str = ""
    """The pod to watch for its eviction, where the watcher runs beside a worker; empty: none."""
    pod_namespace: str = "default"
    """The namespace of that pod."""
    grace_ms: int = 30_000
    """What a taint leaves: the terminationGracePeriodSeconds of the workers' pods."""
    taints: tuple[str, ...] = ()
    """More taints that announce the end of a node, besides those of the well-known controllers."""
    ca_file: Path | None = SERVICE_ACCOUNT / "ca.crt"
    """Whom to trust as the API server; none trusts what the system trusts."""
    token_file: Path | None = SERVICE_ACCOUNT / "token"
    """What to show it; none shows nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SlurmConfig:
    """Signals of Slurm, or of anything else that ends a job by them."""

    sigterm_grace_ms: int | None = 30_000
    """The partition's GraceTime; none lets SIGTERM end the watcher and be no notice."""
    sigusr1_grace_ms: int | None = None
    """The lead of `--signal=USR1@SECONDS`; none lets SIGUSR1 mean nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SqsConfig:
    """A queue with the EventBridge events of a whole account; needs `tideserve[watcher-sqs]`."""

    queue_url: str = ""
    """As SQS gives it."""
    region: str = ""
    """Empty takes it from the URL."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceConfig:
    """A file of notices to come."""

    file: Path | None = None
    """JSON lines; sources/trace.py describes them."""
    start_at_unix_ms: int | None = None
    """When the trace begins, so that several watchers agree; none: when this process starts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WatcherConfig(ServiceConfig):
    """What an operator sets; everything else is in WatcherOptions, with its reason."""

    node_id: str = ""
    """This node, as its workers and the planner name it; empty takes the host name."""
    sources: tuple[SourceName, ...] = ("manual",)
    """Who may say that the node ends. Without manual, nobody gives notice by a request."""
    socket_path: Path | None = None
    """Where the node's workers connect; none gives notices over the bus alone."""
    safety_ms: int = 2_000
    """Taken off every grace: for the way of a message and for a cloud that is early."""
    grace_ms_max: int | None = None
    """No grace is longer than this, whatever a source says; none trusts the sources."""
    aws: AwsConfig = field(default_factory=AwsConfig)
    """Used if sources has aws."""
    gcp: GcpConfig = field(default_factory=GcpConfig)
    """Used if sources has gcp."""
    azure: AzureConfig = field(default_factory=AzureConfig)
    """Used if sources has azure."""
    kubernetes: KubernetesConfig = field(default_factory=KubernetesConfig)
    """Used if sources has kubernetes."""
    slurm: SlurmConfig = field(default_factory=SlurmConfig)
    """Used if sources has slurm."""
    sqs: SqsConfig = field(default_factory=SqsConfig)
    """Used if sources has eventbridge-sqs."""
    trace: TraceConfig = field(default_factory=TraceConfig)
    """Used if sources has trace."""

    def __post_init__(self) -> None:
        if len(set(self.sources)) < len(self.sources):
            raise ConfigError("sources: name each source once")
        require_at_least(1, self, "aws.poll_interval_ms", "azure.poll_interval_ms")
        require_at_least(
            0,
            self,
            "safety_ms",
            "grace_ms_max",
            "gcp.grace_ms",
            "gcp.maintenance_grace_ms",
            "kubernetes.grace_ms",
            "slurm.sigterm_grace_ms",
            "slurm.sigusr1_grace_ms",
        )
        self._require_named()

    def _require_named(self) -> None:
        """Refuse a source that lacks what it cannot work without."""
        if "kubernetes" in self.sources and not self.kubernetes.node_name:
            raise ConfigError("kubernetes.node_name: name the Node, by the downward API")
        if "eventbridge-sqs" in self.sources and not self.sqs.queue_url:
            raise ConfigError("sqs.queue_url: name the queue")
        if "trace" in self.sources and self.trace.file is None:
            raise ConfigError("trace.file: name the file")

    @property
    def signal_graces_ns(self) -> dict[str, int]:
        """What each signal leaves; empty unless slurm is a source."""
        graces_ms = {
            "SIGTERM": self.slurm.sigterm_grace_ms,
            "SIGUSR1": self.slurm.sigusr1_grace_ms,
        }
        if "slurm" not in self.sources:
            return {}
        return {
            name: grace_ms * NS_PER_MS
            for name, grace_ms in graces_ms.items()
            if grace_ms is not None
        }
