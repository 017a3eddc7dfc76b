"""What each process of a fleet on this machine is told: names, settings, folders."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from libs.contracts.placement import Policy
from libs.contracts.reports import Market
from libs.engine.scheduling.coserve import Coserve
from libs.kernel.errors import ConfigError
from services.launcher.child_process import ChildOptions
from services.launcher.model_source import ModelSource

LOCAL_ZONE = "local"
WATCHER_SAFETY_MS = 100
"""A cloud on the same machine keeps its time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedOptions:
    """A fleet whose workers compute what a planner says, on nodes that come and go."""

    nodes: int
    gpus_per_node: int = 1
    policy: Policy = Policy.TIDESERVE
    planners: int = 1
    migrators: int = 1
    transport: str = "auto"
    """Between workers: auto, tcp or ucx."""
    provisioned_nodes_max: int = 0
    """The planner gets nodes up to so many, as demand and losses ask for; 0: it gets none."""

    def __post_init__(self) -> None:
        for name in ("nodes", "gpus_per_node", "planners", "migrators"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name.replace('_', '-')}: must be at least 1")
        if self.provisioned_nodes_max and self.provisioned_nodes_max < self.nodes:
            raise ConfigError("--provision: must be at least --nodes, which are always kept")
        if self.transport not in ("auto", "tcp", "ucx"):
            raise ConfigError("--transport: must be auto, tcp or ucx")


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetOptions:
    """What to start."""

    model: ModelSource
    data_folder: Path
    workers: int = 2
    """Each with the whole model; ignored where the fleet is planned."""
    routers: int = 1
    gateways: int = 1
    offline_queues: int = 1
    """0: nobody takes batches and jobs."""
    device: str = "cpu"
    profile: str | None = None
    """File with the model's measured profile, for all who predict; None: they assume."""
    http_port: int = 8000
    """0 takes a free one."""
    nats_url: str | None = None
    """An existing broker; None starts one of our own."""
    is_restarting: bool = True
    """Whether a child that ends is started anew."""
    worker_settings: Mapping[str, str] = field(default_factory=dict)
    """Further fields of every worker's config, such as kv_bytes."""
    queue_settings: Mapping[str, str] = field(default_factory=dict)
    """Further fields of every offline queue's config, such as lease_s."""
    api_keys_file: Path | None = None
    """Who may ask the gateway; None: everybody on this machine."""
    planned: PlannedOptions | None = None
    coserve: Coserve = Coserve.TIDESERVE
    """How offline work shares the workers with online work."""
    ttft_slo_ms: int = 1_000
    tbt_slo_ms: int = 100

    def __post_init__(self) -> None:
        for name, least in (
            ("workers", 1),
            ("routers", 1),
            ("gateways", 0),
            ("ttft_slo_ms", 1),
            ("tbt_slo_ms", 1),
            ("offline_queues", 0),
        ):
            if getattr(self, name) < least:
                raise ConfigError(f"--{name.replace('_', '-')}: must be at least {least}")
        if self.device not in ("cpu", "cuda"):
            raise ConfigError("--device: must be cpu or cuda")
        if not 0 <= self.http_port <= 65535:
            raise ConfigError("--http-port: must be between 0 and 65535")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipes:
    """Writes the options of every child of one fleet."""

    options: FleetOptions
    nats_url: str
    socket_folder: Path
    """For the watchers' sockets; short, because a socket's path may have about 100 characters."""

    @property
    def peer_secret_file(self) -> Path:
        """What workers of this fleet know one another by."""
        return self.options.data_folder.resolve() / "peer_secret"

    @property
    def _blob_store(self) -> str:
        """Where the files of batches lie."""
        return f"folder:{self.options.data_folder.resolve() / 'blobs'}"

    def standing(self) -> list[ChildOptions]:
        """Processes that stay: all but nodes, and workers where nobody plans for nodes."""
        options = self.options
        wanted = [
            *(self._router(number) for number in _numbers(options.routers)),
            *(self._gateway(number) for number in _numbers(options.gateways)),
            *(self._offline_queue(number) for number in _numbers(options.offline_queues)),
        ]
        if options.planned is None:
            return [*(self._whole_worker(number) for number in _numbers(options.workers)), *wanted]
        planned = options.planned
        return [
            *wanted,
            *(self._planner(planned, number) for number in _numbers(planned.planners)),
            *(self._migrator(number) for number in _numbers(planned.migrators)),
        ]

    def node(self, node_id: str, *, market: Market, zone: str | None) -> list[ChildOptions]:
        """Processes of one node: its workers, and the watcher that tells them of its end."""
        planned = self.options.planned
        assert planned is not None, "only a planned fleet has nodes"
        socket = self.socket_folder / f"{node_id}.sock"
        watcher = self._child(
            f"{node_id}-watcher",
            service="preemption_watcher",
            settings={
                "node_id": node_id,
                "socket_path": str(socket),
                "safety_ms": str(WATCHER_SAFETY_MS),
            },
            is_reporting=False,
        )
        workers = [
            self._worker(
                f"{node_id}-w{number}",
                {
                    "placement": "planned",
                    "node_id": node_id,
                    "zone": zone or LOCAL_ZONE,
                    "market": market.value,
                    "transport": planned.transport,
                    "peer_secret_file": str(self.peer_secret_file),
                    "node_socket": str(socket),
                },
                threads=threads_per_worker(planned.nodes * planned.gpus_per_node),
            )
            for number in _numbers(planned.gpus_per_node)
        ]
        return [watcher, *workers]

    def _whole_worker(self, number: int) -> ChildOptions:
        threads = threads_per_worker(self.options.workers)
        return self._worker(f"worker-{number}", {}, threads=threads, name=f"gpu-worker-{number}")

    def _worker(
        self, worker_id: str, settings: dict[str, str], *, threads: int, name: str | None = None
    ) -> ChildOptions:
        shared = {
            "worker_id": worker_id,
            "threads": str(threads),
            **self._model(),
            "coserve": self.options.coserve.value,
            "ttft_slo_ms": str(self.options.ttft_slo_ms),
            "tbt_slo_ms": str(self.options.tbt_slo_ms),
            **self.options.worker_settings,
        }
        return self._child(name or worker_id, service="gpu_worker", settings={**shared, **settings})

    def _router(self, number: int) -> ChildOptions:
        model = self.options.model
        settings = {
            "router_id": f"router-{number}",
            "models": f"{model.alias}={model.folder}",
            "ttft_slo_ms": str(self.options.ttft_slo_ms),
            "tpot_slo_ms": str(self.options.tbt_slo_ms),
        }
        return self._child(f"online-router-{number}", service="online_router", settings=settings)

    def _gateway(self, number: int) -> ChildOptions:
        settings = {
            "gateway_id": f"gateway-{number}",
            "port": str(self.options.http_port),
            "blob_store": self._blob_store,
        }
        if self.options.api_keys_file is not None:
            settings["api_keys_file"] = str(self.options.api_keys_file.resolve())
        return self._child(f"http-gateway-{number}", service="http_gateway", settings=settings)

    def _offline_queue(self, number: int) -> ChildOptions:
        settings = {
            "queue_id": f"offline-queue-{number}",
            "blob_store": self._blob_store,
            **self.options.queue_settings,
        }
        return self._child(f"offline-queue-{number}", service="offline_queue", settings=settings)

    def _planner(self, planned: PlannedOptions, number: int) -> ChildOptions:
        settings = {
            "planner_id": f"planner-{number}",
            "policy": planned.policy.value,
            "nodes_expected": str(planned.nodes),
            **self._provisioning(planned),
            **self._model(),
        }
        return self._child(f"planner-{number}", service="planner", settings=settings)

    @staticmethod
    def _provisioning(planned: PlannedOptions) -> dict[str, str]:
        if not planned.provisioned_nodes_max:
            return {}
        return {
            "provisioner": "local",
            "nodes_max": str(planned.provisioned_nodes_max),
            "nodes_min": str(planned.nodes),
        }

    def _migrator(self, number: int) -> ChildOptions:
        settings = {"migrator_id": f"migrator-{number}", **self._model()}
        return self._child(f"migrator-{number}", service="migrator", settings=settings)

    def _model(self) -> dict[str, str]:
        """What everybody is told who computes the model, or predicts who does."""
        options = self.options
        settings = {
            "model": str(options.model.folder),
            "alias": options.model.alias,
            "device": options.device,
        }
        return settings if options.profile is None else {**settings, "profile": options.profile}

    def _child(
        self, name: str, *, service: str, settings: dict[str, str], is_reporting: bool = True
    ) -> ChildOptions:
        return ChildOptions(
            name=name,
            service=service,
            settings={"nats_url": self.nats_url, **settings},
            log_folder=self.options.data_folder.resolve() / "logs",
            is_reporting=is_reporting,
        )


def threads_per_worker(workers: int, *, cores: int | None = None) -> int:
    """Share the cores, less one for router, gateway and broker; at least one each.

    An engine thread that waits for a core slows every step of all threads of its worker.
    """
    usable = (cores or os.cpu_count() or 1) - 1
    return max(1, usable // workers)


def _numbers(count: int) -> range:
    return range(1, count + 1)
