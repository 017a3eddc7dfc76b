"""From the settings to the sources."""

from pathlib import Path
from typing import Final, assert_never

from libs.kernel.errors import ConfigError
from libs.kernel.units import NS_PER_MS
from libs.runtime.clock import Clock
from services.preemption_watcher.config import (
    KubernetesConfig,
    SourceName,
    SqsConfig,
    TraceConfig,
    WatcherConfig,
)
from services.preemption_watcher.sources.aws import AwsSource
from services.preemption_watcher.sources.azure import AzureSource
from services.preemption_watcher.sources.gcp import maintenance_source, preempted_source
from services.preemption_watcher.sources.http_client import HttpClient
from services.preemption_watcher.sources.kubernetes import (
    NODE,
    POD,
    KubernetesSource,
    node_reader,
    read_pod,
    service_account_client,
)
from services.preemption_watcher.sources.signals import SignalSource
from services.preemption_watcher.sources.source import NoticeSource
from services.preemption_watcher.sources.trace import TraceSource, read_trace

BOOT_ID_FILE: Final = Path("/proc/sys/kernel/random/boot_id")


def open_sources(config: WatcherConfig, *, node_id: str, clock: Clock) -> list[NoticeSource]:
    """Return the sources that are configured; nothing is asked yet. Raises: ConfigError."""
    opened = [_open(name, config, node_id=node_id, clock=clock) for name in config.sources]
    return [source for group in opened for source in group]


def _open(
    name: SourceName, config: WatcherConfig, *, node_id: str, clock: Clock
) -> list[NoticeSource]:
    match name:
        case "manual":
            return []  # Requests come over the bus; there is nobody to ask.
        case "aws":
            aws = AwsSource(
                HttpClient(config.aws.base_url, setting="aws.base_url"),
                clock=clock,
                poll_interval_ns=config.aws.poll_interval_ms * NS_PER_MS,
                is_rebalance_heard=config.aws.is_rebalance_heard,
            )
            return [aws]
        case "gcp":
            return _gcp(config)
        case "azure":
            azure = AzureSource(
                HttpClient(config.azure.base_url, setting="azure.base_url"),
                poll_interval_ns=config.azure.poll_interval_ms * NS_PER_MS,
                vm_name=config.azure.vm_name or None,
            )
            return [azure]
        case "kubernetes":
            return _kubernetes(config.kubernetes)
        case "slurm":
            return [SignalSource(config.signal_graces_ns, node_id=node_id, clock=clock)]
        case "eventbridge-sqs":
            return [_sqs(config.sqs, clock)]
        case "trace":
            return [_trace(config.trace, node_id=node_id, clock=clock)]
        case _:
            assert_never(name)


def _gcp(config: WatcherConfig) -> list[NoticeSource]:
    boot_id = _boot_id()
    return [
        preempted_source(
            HttpClient(config.gcp.base_url, setting="gcp.base_url"),
            grace_ns=config.gcp.grace_ms * NS_PER_MS,
            boot_id=boot_id,
        ),
        maintenance_source(
            HttpClient(config.gcp.base_url, setting="gcp.base_url"),
            grace_ns=config.gcp.maintenance_grace_ms * NS_PER_MS,
            boot_id=boot_id,
        ),
    ]


def _kubernetes(config: KubernetesConfig) -> list[NoticeSource]:
    node = KubernetesSource(
        service_account_client(config.base_url, ca_file=config.ca_file),
        name=NODE,
        collection="/api/v1/nodes",
        object_name=config.node_name,
        token_file=config.token_file,
        read=node_reader(extra_taints=config.taints, grace_ns=config.grace_ms * NS_PER_MS),
    )
    if not config.pod_name:
        return [node]
    pod = KubernetesSource(
        service_account_client(config.base_url, ca_file=config.ca_file),
        name=POD,
        collection=f"/api/v1/namespaces/{config.pod_namespace}/pods",
        object_name=config.pod_name,
        token_file=config.token_file,
        read=read_pod,
    )
    return [node, pod]


def _sqs(config: SqsConfig, clock: Clock) -> NoticeSource:
    try:
        # botocore is an extra of its own: only a watcher of a queue needs it.
        from services.preemption_watcher.sources.eventbridge_sqs import SqsSource
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"sources: eventbridge-sqs needs {error.name}: pip install tideserve[watcher-sqs]"
        ) from None
    return SqsSource(config.queue_url, region=config.region, clock=clock)


def _trace(config: TraceConfig, *, node_id: str, clock: Clock) -> NoticeSource:
    assert config.file is not None, "the settings refuse a trace without a file"
    start_ms = config.start_at_unix_ms
    start_at_unix_ns = clock.now_unix_ns() if start_ms is None else start_ms * NS_PER_MS
    return TraceSource(
        read_trace(config.file), node_id=node_id, start_at_unix_ns=start_at_unix_ns, clock=clock
    )


def _boot_id() -> str:
    """Tell this life of the machine from its others; the same after a restart of the watcher."""
    try:
        return BOOT_ID_FILE.read_text().strip()
    except OSError:
        return ""
