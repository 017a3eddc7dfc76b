"""Nodes as pods of two StatefulSets, one per market: the wish becomes their number of replicas.

The pods' node selector or affinity says which machines are spot; a cluster autoscaler gets them. A
StatefulSet that shrinks ends its highest pods, whichever nodes the planner would rather release;
they are told by their watchers as by any other notice.
Source: kubernetes.io, "Scale" subresource of apps/v1 StatefulSet; a merge patch needs the right to
`patch` on `statefulsets/scale`.
"""

import ssl
from pathlib import Path
from typing import Final

import httpx

from libs.kernel.errors import ConfigError, Unavailable
from libs.kernel.units import NS_PER_S
from services.planner.commands import PublishCapacity
from services.planner.config import KubernetesConfig

TIMEOUT_S: Final = 5.0
RETRY_AFTER_NS: Final = 5 * NS_PER_S
MERGE_PATCH: Final = "application/merge-patch+json"
REASON_CHARACTERS_MAX: Final = 200


class KubernetesProvisioner:
    """Scales the StatefulSets; an unchanged wish is said again and changes nothing."""

    def __init__(self, config: KubernetesConfig) -> None:
        """Raises: ConfigError if the certificate of the API server cannot be read."""
        self._config = config
        self._client = httpx.AsyncClient(
            base_url=config.base_url, timeout=TIMEOUT_S, verify=_trust(config.ca_file)
        )

    async def provide(self, capacity: PublishCapacity) -> None:
        """Set the number of pods of each set. Raises: Unavailable."""
        wanted = capacity.wanted
        for name, replicas in (
            (self._config.spot_set, wanted.spot_nodes),
            (self._config.on_demand_set, wanted.on_demand_nodes),
        ):
            if name:
                await self._scale(name, replicas)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _scale(self, name: str, replicas: int) -> None:
        path = f"/apis/apps/v1/namespaces/{self._config.namespace}/statefulsets/{name}/scale"
        try:
            response = await self._client.patch(
                path,
                json={"spec": {"replicas": replicas}},
                headers={"Content-Type": MERGE_PATCH, **self._authorization()},
            )
        except httpx.HTTPError as error:
            raise _unavailable(f"{name}: {type(error).__name__}: {error}") from None
        if response.status_code != httpx.codes.OK:
            text = response.text[:REASON_CHARACTERS_MAX]
            raise _unavailable(f"{name}: HTTP {response.status_code}: {text}")

    def _authorization(self) -> dict[str, str]:
        """Read anew each time: the kubelet replaces the file before it expires."""
        file = self._config.token_file
        if file is None:
            return {}
        try:
            return {"Authorization": f"Bearer {file.read_text(encoding='ascii').strip()}"}
        except (OSError, UnicodeDecodeError) as error:
            raise _unavailable(f"token_file {file}: {type(error).__name__}") from None


def _trust(ca_file: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=None if ca_file is None else str(ca_file))
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"kubernetes.ca_file: {ca_file}: {error}") from None


def _unavailable(reason: str) -> Unavailable:
    return Unavailable(f"kubernetes: {reason}", retry_after_ns=RETRY_AFTER_NS)
