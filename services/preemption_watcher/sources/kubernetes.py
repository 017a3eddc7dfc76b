"""Kubernetes: a watch of the node, and of the watcher's own pod where it runs beside a worker.

Who takes a node away says so on the Node object before: Karpenter, the cluster autoscaler, the node
termination handlers of AWS and GKE by a taint, the kubelet of a node that shuts down by its Ready
condition. An eviction shows as the pod's deletionTimestamp, which is the instant of its end. A
cordon alone (spec.unschedulable) takes nothing away and is no notice.

A watch without a resource version begins with the object as it is, so that a broken watch is simply
begun anew.
Source: kubernetes.io, "Kubernetes API Concepts", and the source code of those controllers.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any, Final

import httpx

from libs.contracts.preemption import NoticeKind
from libs.kernel.errors import ConfigError, ContractViolation, Unavailable
from libs.kernel.units import MIB, NS_PER_MS
from services.preemption_watcher.options import SourceOptions
from services.preemption_watcher.readings import Observation, Reading, notice_id_of
from services.preemption_watcher.sources.http_client import (
    REASON_CHARACTERS_MAX,
    RETRY_AFTER_NS,
    HttpClient,
    json_object,
    text_field,
    translated_errors,
)
from services.preemption_watcher.sources.instants import rfc3339_unix_ns

NODE: Final = "kubernetes"
POD: Final = "kubernetes-pod"
WATCH_S: Final = 240
"""The API server ends a watch after so long; then the next begins."""
SILENCE_S: Final = WATCH_S + 30
LINE_BYTES_MAX: Final = 4 * MIB
"""etcd takes objects of up to 1.5 MiB."""
POLL_INTERVAL_NS: Final = 100 * NS_PER_MS
"""Between two events of a watch, and before a watch that has ended is begun anew."""
TAINTS: Final[Mapping[str, NoticeKind]] = {
    "karpenter.sh/disrupted": NoticeKind.PREEMPTION,
    "karpenter.sh/disruption": NoticeKind.PREEMPTION,
    "aws-node-termination-handler/spot-itn": NoticeKind.PREEMPTION,
    "aws-node-termination-handler/asg-lifecycle-termination": NoticeKind.PREEMPTION,
    "aws-node-termination-handler/scheduled-maintenance": NoticeKind.MAINTENANCE,
    "aws-node-termination-handler/rebalance-recommendation": NoticeKind.REBALANCE,
    "cloud.google.com/impending-node-termination": NoticeKind.PREEMPTION,
    "ToBeDeletedByClusterAutoscaler": NoticeKind.PREEMPTION,
    "node.cloudprovider.kubernetes.io/shutdown": NoticeKind.PREEMPTION,
}
SHUTTING_DOWN: Final = "node is shutting down"
"""What the kubelet writes into the Ready condition during a graceful node shutdown."""

Reader = Callable[[dict[str, Any]], tuple[Reading, ...]]


class KubernetesSource:
    """Watches one object."""

    def __init__(
        self,
        client: HttpClient,
        *,
        name: str,
        collection: str,
        object_name: str,
        token_file: Path | None,
        read: Reader,
    ) -> None:
        self._client = client
        self._path = (
            f"{collection}?watch=true&fieldSelector=metadata.name%3D{object_name}"
            f"&timeoutSeconds={WATCH_S}"
        )
        self._token_file = token_file
        self._read = read
        self._response: httpx.Response | None = None
        self._lines: AsyncIterator[bytes] | None = None
        self._last = Observation(is_whole=False)
        self.options = SourceOptions(name=name, poll_interval_ns=POLL_INTERVAL_NS)

    async def poll(self) -> Observation:
        """Return what the next event of the watch says; see NoticeSource.poll."""
        if self._lines is None:
            self._lines = await self._open()
        try:
            async with asyncio.timeout(SILENCE_S), translated_errors():
                line = await anext(self._lines, None)
        except TimeoutError:
            await self._hang_up()
            raise _unavailable(f"a watch is silent for {SILENCE_S} s") from None
        except Unavailable:
            await self._hang_up()
            raise
        if line is None:
            await self._hang_up()
        elif line.strip():
            await self._take(json_object(line))
        return self._last

    async def confirm(self, notice_id: str) -> None:
        """Kubernetes does not want to know."""

    async def close(self) -> None:
        """See NoticeSource.close."""
        await self._hang_up()
        await self._client.close()

    async def _open(self) -> AsyncIterator[bytes]:
        response = await self._client.open_stream(self._path, headers=self._headers())
        self._response = response
        if response.status_code != 200:
            await self._hang_up()
            raise _unavailable(f"HTTP {response.status_code} for {self._path.partition('?')[0]}")
        return _lines_of(response)

    async def _take(self, event: dict[str, Any]) -> None:
        event_type = text_field(event, "type")
        subject = event.get("object")
        if not isinstance(subject, dict):
            raise ContractViolation("object: must be an object")
        match event_type:
            case "ADDED" | "MODIFIED":
                self._last = Observation(readings=self._read(subject))
            case "DELETED":
                self._last = Observation(readings=(_deleted(subject, self.options.name),))
            case "BOOKMARK":
                pass
            case "ERROR":
                await self._hang_up()
                said = str(subject.get("message"))[:REASON_CHARACTERS_MAX]
                raise _unavailable(f"the watch ended with {subject.get('code')}: {said}")
            case _:
                raise ContractViolation(f"type: unknown: {event_type[:60]!r}")

    async def _hang_up(self) -> None:
        response, self._response, self._lines = self._response, None, None
        if response is not None:
            async with translated_errors():
                await response.aclose()

    def _headers(self) -> dict[str, str]:
        """The token is read anew each time: the kubelet renews it."""
        headers = {"Accept": "application/json"}
        if self._token_file is not None:
            try:
                headers["Authorization"] = f"Bearer {self._token_file.read_text().strip()}"
            except (OSError, UnicodeDecodeError) as error:
                raise _unavailable(f"{self._token_file}: {error}") from None
        return headers


def node_reader(*, extra_taints: tuple[str, ...], grace_ns: int) -> Reader:
    """Return how to read a Node. `grace_ns` is what a taint leaves the pods: none says itself."""
    kinds = {**TAINTS, **dict.fromkeys(extra_taints, NoticeKind.PREEMPTION)}

    def read(node: dict[str, Any]) -> tuple[Reading, ...]:
        uid = _uid(node)
        readings = [
            Reading(
                notice_id=notice_id_of(NODE, uid, key, value),
                kind=kinds[key],
                grace_ns=None if kinds[key] is NoticeKind.REBALANCE else grace_ns,
                detail=f"the node is tainted {key}",
            )
            for key, value in _taints(node)
            if key in kinds
        ]
        if _is_shutting_down(node):
            readings.append(
                Reading(
                    notice_id=notice_id_of(NODE, uid, SHUTTING_DOWN),
                    kind=NoticeKind.PREEMPTION,
                    grace_ns=grace_ns,
                    detail="the kubelet shuts the node down",
                )
            )
        return tuple(readings)

    return read


def read_pod(pod: dict[str, Any]) -> tuple[Reading, ...]:
    """Read a Pod: being deleted, it ends at its deletionTimestamp. Raises: ContractViolation."""
    metadata = _metadata(pod)
    if metadata.get("deletionTimestamp") is None:
        return ()
    deadline = text_field(metadata, "deletionTimestamp")
    return (
        Reading(
            notice_id=notice_id_of(POD, _uid(pod)),
            kind=NoticeKind.PREEMPTION,
            deadline_at_unix_ns=rfc3339_unix_ns(deadline),
            detail=f"the pod is deleted by {deadline}",
        ),
    )


def service_account_client(base_url: str, *, ca_file: Path | None) -> HttpClient:
    """Return a client of the API server. Raises: ConfigError outside of a cluster."""
    if ca_file is not None and not ca_file.exists():
        raise ConfigError(f"kubernetes.ca_file: {ca_file} is not there: not in a cluster?")
    return HttpClient(base_url, setting="kubernetes.base_url", ca_file=ca_file)


async def _lines_of(response: httpx.Response) -> AsyncIterator[bytes]:
    """Yield the lines of a body that never ends. Raises: ContractViolation for an endless line."""
    pending = b""
    async for chunk in response.aiter_bytes():
        *lines, pending = (pending + chunk).split(b"\n")
        for line in lines:
            yield line
        if len(pending) > LINE_BYTES_MAX:
            raise ContractViolation(f"a line of more than {LINE_BYTES_MAX} bytes")


def _deleted(subject: dict[str, Any], name: str) -> Reading:
    return Reading(
        notice_id=notice_id_of(name, _uid(subject), "deleted"),
        kind=NoticeKind.PREEMPTION,
        grace_ns=0,
        detail="the object is deleted",
    )


def _metadata(subject: dict[str, Any]) -> dict[str, Any]:
    metadata = subject.get("metadata")
    if not isinstance(metadata, dict):
        raise ContractViolation("metadata: must be an object")
    return metadata


def _uid(subject: dict[str, Any]) -> str:
    return text_field(_metadata(subject), "uid")


def _taints(node: dict[str, Any]) -> list[tuple[str, str]]:
    """Return keys and values of the taints; a value may be missing."""
    taints = _objects(node, "spec", "taints")
    return [(text_field(taint, "key"), str(taint.get("value") or "")) for taint in taints]


def _is_shutting_down(node: dict[str, Any]) -> bool:
    return any(
        condition.get("type") == "Ready"
        and condition.get("status") != "True"
        and condition.get("message") == SHUTTING_DOWN
        for condition in _objects(node, "status", "conditions")
    )


def _objects(subject: dict[str, Any], section: str, name: str) -> list[dict[str, Any]]:
    """Return a list of objects that may be missing. Raises: ContractViolation if it is no such."""
    holder = subject.get(section) or {}
    found = holder.get(name) or [] if isinstance(holder, dict) else None
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise ContractViolation(f"{section}.{name}: must be a list of objects")
    return found


def _unavailable(reason: str) -> Unavailable:
    return Unavailable(reason, retry_after_ns=RETRY_AFTER_NS)
