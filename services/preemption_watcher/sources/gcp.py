"""Google Compute Engine: two keys of the metadata server, each watched by a hanging GET.

`instance/preempted` turns to TRUE when a Spot VM is about to get its 30 s (15 s of them for pods on
GKE); `instance/maintenance-event` to TERMINATE_ON_HOST_MAINTENANCE about an hour before a VM with a
GPU is stopped. Neither names an instant. A live migration is no end of the node and no notice.
Source: cloud.google.com/compute/docs, "View and query VM metadata" and "Spot VMs".
"""

from collections.abc import Callable
from typing import Final

from libs.contracts.preemption import NoticeKind
from libs.kernel.errors import ContractViolation
from libs.kernel.units import NS_PER_MS, NS_PER_S
from services.preemption_watcher.options import SourceOptions
from services.preemption_watcher.readings import Observation, Reading, notice_id_of
from services.preemption_watcher.sources.http_client import (
    TIMEOUT_NS,
    HttpClient,
    unexpected,
)

PREEMPTED: Final = "gcp"
MAINTENANCE: Final = "gcp-maintenance"
ROOT_PATH: Final = "/computeMetadata/v1/instance"
FLAVOR_HEADER: Final = "metadata-flavor"
FLAVOR: Final = "Google"
WAIT_S: Final = 60
"""How long the server lets one wait for a change before it answers all the same."""
POLL_INTERVAL_NS: Final = 200 * NS_PER_MS
"""The pause between two hanging GETs, for a server that does not hang."""

Reader = Callable[[str], tuple[Reading, ...]]


class GcpSource:
    """Watches one key."""

    def __init__(self, client: HttpClient, *, name: str, key: str, read: Reader) -> None:
        self._client = client
        self._path = f"{ROOT_PATH}/{key}"
        self._read = read
        self._etag: str | None = None
        self.options = SourceOptions(name=name, poll_interval_ns=POLL_INTERVAL_NS)

    async def poll(self) -> Observation:
        """See NoticeSource.poll; the first answers at once, the next when the value changes."""
        path, timeout_ns = self._path, TIMEOUT_NS
        if self._etag is not None:
            path += f"?wait_for_change=true&last_etag={self._etag}&timeout_sec={WAIT_S}"
            timeout_ns += WAIT_S * NS_PER_S
        etag, self._etag = self._etag, None  # After any failure the value is read at once.
        answer = await self._client.send(
            "GET", path, headers={FLAVOR_HEADER: FLAVOR}, timeout_ns=timeout_ns
        )
        if answer.status != 200:
            raise unexpected(answer)
        if answer.headers.get(FLAVOR_HEADER) != FLAVOR:
            raise ContractViolation("the answer is not of Google's metadata server")
        readings = self._read(answer.text().strip())
        self._etag = answer.headers.get("etag", etag)
        return Observation(readings=readings)

    async def confirm(self, notice_id: str) -> None:
        """Compute Engine does not want to know."""

    async def close(self) -> None:
        """See NoticeSource.close."""
        await self._client.close()


def preempted_source(client: HttpClient, *, grace_ns: int, boot_id: str) -> GcpSource:
    """Return the source of preemptions. The boot's id tells the notices of a VM's lives apart."""

    def read(value: str) -> tuple[Reading, ...]:
        match value:
            case "FALSE":
                return ()
            case "TRUE":
                return (
                    Reading(
                        notice_id=notice_id_of(PREEMPTED, boot_id),
                        kind=NoticeKind.PREEMPTION,
                        grace_ns=grace_ns,
                        detail="Compute Engine preempts the instance",
                    ),
                )
            case _:
                raise ContractViolation(f"preempted: neither TRUE nor FALSE: {value[:60]!r}")

    return GcpSource(client, name=PREEMPTED, key="preempted", read=read)


def maintenance_source(client: HttpClient, *, grace_ns: int, boot_id: str) -> GcpSource:
    """Return the source of host maintenance that stops the VM."""

    def read(value: str) -> tuple[Reading, ...]:
        match value:
            case "NONE" | "MIGRATE_ON_HOST_MAINTENANCE":
                return ()
            case "TERMINATE_ON_HOST_MAINTENANCE":
                return (
                    Reading(
                        notice_id=notice_id_of(MAINTENANCE, boot_id),
                        kind=NoticeKind.MAINTENANCE,
                        grace_ns=grace_ns,
                        detail="Compute Engine stops the instance for host maintenance",
                    ),
                )
            case _:
                raise ContractViolation(f"maintenance-event: unknown: {value[:60]!r}")

    return GcpSource(client, name=MAINTENANCE, key="maintenance-event", read=read)
