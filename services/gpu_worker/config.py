"""Settings of one worker process (`GPU_WORKER__FIELD` in the environment)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from libs.contracts.subjects import alias_of
from libs.engine.scheduling.coserve import Coserve, CoserveOptions
from libs.kernel.errors import ConfigError
from libs.kernel.units import NS_PER_MS
from libs.runtime.config import require_at_least
from libs.runtime.service import ServiceConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerConfig(ServiceConfig):
    """What an operator sets; everything else is in WorkerOptions, with its reason."""

    model: str
    """Folder in Hugging Face form, or a hub id."""
    worker_id: str = "worker"
    """Prefix of this process's id; a random suffix makes it unique per start."""
    alias: str = ""
    """Name that clients address the model by; empty takes the last part of `model`."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of weights and KV. auto is float32 on a CPU, where a moved session then goes on with the
    very same tokens, and what the checkpoint says on a GPU."""
    device: str = "cpu"
    """As torch names it: cpu, cuda, cuda:1."""
    threads: int = 1
    """CPU threads of the engine. More than one only on a machine of the worker's own: with a
    neighbour on the cores every step waits for the slowest thread."""
    profile: str | None = None
    """How long steps take here: a file that `tideserve profile` wrote; auto looks for one of this
    model and hardware in the user's cache; none assumes it from the model's size."""
    kv_bytes: int | None = None
    """Memory for KV at most; none takes the engine's default for the device."""
    blocks_total: int | None = None
    """KV blocks exactly, instead of kv_bytes."""
    block_tokens: int = 16
    """Tokens per KV block; the same for all workers of a model, or no prefix is ever found."""
    step_tokens_max: int = 512
    """Tokens per engine step: bounds what a long prompt delays the running sessions by."""
    sequences_max: int = 64
    """Sessions computed at a time; more of them wait."""
    coserve: Literal[
        "tideserve",
        "conserve",
        "online-only",
        "non-preemptive",
        "priority-recompute",
        "fixed-chunk",
    ] = "tideserve"
    """How offline sessions share the engine with online ones; the others than the default are there
    to be compared with."""
    ttft_slo_ms: int = 1_000
    """First token of an online session, from its arrival at the worker: what offline work gives a
    step up for."""
    tbt_slo_ms: int = 100
    """Time between two tokens of an online session: what offline work fills up to."""
    sessions_max: int = 1024
    """Sessions held, those that wait included; past it a session is refused as full."""
    context_tokens_max: int | None = None
    """Shortens the model's own context."""
    report_interval_ms: int = 200
    """Heartbeat; routers count missed ones, so all processes of a fleet use the same."""
    drain_ms: int = 5_000
    """How long running sessions may finish after SIGTERM; then they go on elsewhere."""
    step_timeout_ms: int = 120_000
    """An engine step that takes longer counts as hanging, and the process ends with 71."""
    placement: Literal["solo", "planned"] = "solo"
    """solo serves the whole model from the start; planned waits for a migrator to say which part of
    which replica it computes."""
    node_id: str | None = None
    """The node that this process runs on, whose notices it obeys; none: nobody will tell. As the
    cluster names it: dots become dashes, as its watcher writes it."""
    node_socket: str | None = None
    """Unix-domain socket on which the node's watcher gives notice without the broker."""
    zone: str | None = None
    """Where the node is; shown to the planner."""
    market: Literal["spot", "on_demand"] = "on_demand"
    """How the node was bought; shown to the planner."""
    grace_reserve_ms: int = 300
    """So long before the node ends, sessions that are still here are sent away: enough to tell
    their routers, too little to compute much more."""
    transport: Literal["auto", "tcp", "ucx"] = "auto"
    """How KV and weights travel; auto is UCX on a GPU where it is installed, else TCP."""
    peer_host: str = "127.0.0.1"
    """Address of this machine at which other workers reach this one; auto: that of its name."""
    peer_secret_file: str | None = None
    """File with 32 bytes or more that all workers of the fleet share: they then talk to nobody who
    does not hold them. None trusts whoever reaches the port."""
    memory_bytes: int | None = None
    """Of a planned worker, for weights and KV; none takes nine tenths of a GPU, or of a CPU's
    machine a quarter of its memory."""
    checkpoints: Literal["off", "eager", "lazy"] = "eager"
    """Copies of offline KV in host memory, from which an evicted sequence goes on: of every block
    when it is full, only when blocks run out, or none."""
    host_kv_bytes: int | None = None
    """Host memory for them at most; none takes an eighth of the machine's with a GPU, or a 32nd
    without. On a CPU it is taken from the system only when used."""
    guard_bytes_per_s: int = 0
    """KV of running sessions copied to a replica on other nodes, so that less is computed again if
    this one dies without notice; of planned workers with a node_id. 0 copies none."""
    group_timeout_ms: int = 10_000
    """Longest wait for another worker of the replica within a step; then it counts as lost. Above
    the longest that one stage computes while another waits."""
    otlp_endpoint: str | None = None
    """Where traces go: an OTLP receiver over HTTP, such as http://127.0.0.1:4318; None: nowhere."""

    def __post_init__(self) -> None:
        if not self.model:
            raise ConfigError("model: name a folder or a hub id")
        require_at_least(
            1,
            self,
            "threads",
            "block_tokens",
            "step_tokens_max",
            "sequences_max",
            "ttft_slo_ms",
            "tbt_slo_ms",
            "sessions_max",
            "report_interval_ms",
            "step_timeout_ms",
            "group_timeout_ms",
        )
        if self.step_tokens_max < self.sequences_max:
            raise ConfigError("step_tokens_max: must be at least sequences_max")
        require_at_least(0, self, "drain_ms", "grace_reserve_ms", "guard_bytes_per_s")
        if self.zone is not None and alias_of(self.zone) != self.zone:
            raise ConfigError(f"zone: 1 to 64 of a-z, 0-9, _ and -, not {self.zone!r}")
        if self.node_socket is not None and self.node_id is None:
            raise ConfigError("node_socket: set node_id, too")
        require_at_least(
            1,
            self,
            "kv_bytes",
            "blocks_total",
            "context_tokens_max",
            "memory_bytes",
            "host_kv_bytes",
        )

    @property
    def alias_served(self) -> str:
        """The alias, as a subject token."""
        return alias_of(self.alias or Path(self.model).expanduser().resolve().name)

    @property
    def node_id_reported(self) -> str | None:
        """The node, as a subject token; the watcher makes the same of the same name."""
        return None if self.node_id is None else alias_of(self.node_id)

    @property
    def engine_dtype(self) -> Literal["auto", "float32", "bfloat16"]:
        """What `dtype` means on this device."""
        if self.dtype == "auto" and self.device == "cpu":
            return "float32"
        return self.dtype

    @property
    def is_planned(self) -> bool:
        """Whether a migrator says what this worker computes."""
        return self.placement == "planned"

    @property
    def has_gpu(self) -> bool:
        """Whether it computes on something else than a CPU."""
        return self.device != "cpu"

    @property
    def coserve_options(self) -> CoserveOptions:
        """How both tides share the engine."""
        return CoserveOptions(
            policy=Coserve(self.coserve),
            ttft_slo_ns=self.ttft_slo_ms * NS_PER_MS,
            tbt_slo_ns=self.tbt_slo_ms * NS_PER_MS,
        )
