"""Provisioners against servers on loopback that speak as the real ones do."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from libs.contracts import subjects
from libs.contracts.local_cloud import (
    CLOUD_REQUESTS,
    AddNode,
    CloudDone,
    CloudRefused,
    PreemptNode,
    ToCloud,
)
from libs.contracts.placement import CapacityWanted
from libs.contracts.reports import Market
from libs.contracts.wire import encode
from libs.kernel.errors import ConfigError, Unavailable
from libs.kernel.units import NS_PER_S
from libs.runtime.bus import BusMessage
from libs.runtime.memory_bus import MemoryBus
from libs.runtime.memory_hub import MemoryHub
from services.planner.commands import PublishCapacity
from services.planner.config import KubernetesConfig
from services.planner.provisioners.kubernetes import KubernetesProvisioner
from services.planner.provisioners.local import LocalProvisioner

SCALE = "/apis/apps/v1/namespaces/serving/statefulsets/{}/scale"


def a_wish(
    *,
    spot: int = 0,
    on_demand: int = 0,
    spot_now: tuple[str, ...] = (),
    on_demand_now: tuple[str, ...] = (),
    release: tuple[str, ...] = (),
) -> PublishCapacity:
    return PublishCapacity(
        wanted=CapacityWanted(
            alias="tide",
            plan_revision=1,
            spot_nodes=spot,
            on_demand_nodes=on_demand,
            zones_preferred=("zone-b", "zone-a"),
            nodes_to_release=release,
        ),
        spot_node_ids=spot_now,
        on_demand_node_ids=on_demand_now,
        cause_id="test",
    )


# ------------------------------------------------------------------ the launcher's cloud


@dataclass
class Cloud:
    """Answers as the launcher does, and remembers what it was asked."""

    bus: MemoryBus
    requests: list[ToCloud] = field(default_factory=list)
    is_full: bool = False

    async def serve(self) -> None:
        async for message in await self.bus.subscribe(subjects.LOCAL_CLOUD):
            await self._answer(message)

    async def _answer(self, message: BusMessage) -> None:
        request = CLOUD_REQUESTS.decode(message.payload)
        self.requests.append(request)
        assert message.reply_to is not None
        if self.is_full:
            answer = encode(CloudRefused(operation_id=request.operation_id, message="no room"))
        else:
            node_id = f"node-{len(self.requests)}"
            answer = encode(CloudDone(operation_id=request.operation_id, node_id=node_id))
        await self.bus.publish(message.reply_to, answer)

    def added(self) -> list[tuple[Market, str | None]]:
        return [(r.market, r.zone) for r in self.requests if isinstance(r, AddNode)]


@dataclass
class HandClock:
    """A clock that a test moves."""

    now: int = 0

    def now_ns(self) -> int:
        return self.now

    def now_unix_ns(self) -> int:
        return self.now


@asynccontextmanager
async def a_cloud() -> AsyncIterator[tuple[Cloud, LocalProvisioner, HandClock]]:
    hub = MemoryHub()
    cloud, clock = Cloud(MemoryBus(hub)), HandClock()
    serving = asyncio.create_task(cloud.serve())
    await asyncio.sleep(0)
    yield cloud, LocalProvisioner(MemoryBus(hub), clock, planner_id="p"), clock
    serving.cancel()


async def test_what_is_missing_of_each_market_is_asked_for_in_the_preferred_zone() -> None:
    async with a_cloud() as (cloud, provisioner, _):
        await provisioner.provide(a_wish(spot=3, on_demand=1, spot_now=("x",)))
        assert cloud.added() == [(Market.SPOT, "zone-b")] * 2 + [(Market.ON_DEMAND, "zone-b")]
        assert len({request.operation_id for request in cloud.requests}) == 3


async def test_a_node_that_has_not_reported_yet_is_not_asked_for_again() -> None:
    async with a_cloud() as (cloud, provisioner, clock):
        await provisioner.provide(a_wish(spot=1))
        clock.now += 170 * NS_PER_S
        await provisioner.provide(a_wish(spot=1))
        assert len(cloud.requests) == 1
        clock.now += 20 * NS_PER_S  # it never came
        await provisioner.provide(a_wish(spot=1))
        assert len(cloud.requests) == 2


async def test_a_node_that_came_and_went_is_asked_for_again() -> None:
    async with a_cloud() as (cloud, provisioner, _):
        await provisioner.provide(a_wish(spot=1))
        await provisioner.provide(a_wish(spot=1, spot_now=("node-1",)))
        await provisioner.provide(a_wish(spot=1))
        assert len(cloud.added()) == 2


async def test_a_node_to_release_is_given_notice_and_never_killed() -> None:
    async with a_cloud() as (cloud, provisioner, _):
        await provisioner.provide(a_wish(spot=1, spot_now=("a", "b"), release=("b",)))
        (request,) = cloud.requests
        assert isinstance(request, PreemptNode)
        assert (request.node_id, request.grace_ms) == ("b", 30_000)


async def test_a_cloud_without_room_is_asked_once_per_wish() -> None:
    async with a_cloud() as (cloud, provisioner, _):
        cloud.is_full = True
        await provisioner.provide(a_wish(spot=5))
        assert len(cloud.requests) == 1
        cloud.is_full = False
        await provisioner.provide(a_wish(spot=5))
        assert len(cloud.requests) == 6


async def test_without_a_launcher_the_wish_fails_and_is_tried_again_with_the_next() -> None:
    provisioner = LocalProvisioner(MemoryBus(MemoryHub()), HandClock(), planner_id="p")
    with pytest.raises(Unavailable):
        await provisioner.provide(a_wish(spot=1))


# ------------------------------------------------------------------ Kubernetes


@dataclass
class ApiServer:
    """As much of an API server as the scale subresource needs."""

    token: str = "secret"
    replicas: dict[str, int] = field(default_factory=dict)
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    port: int = 0

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        headers = dict(
            line.lower().split(": ", 1) for line in head.splitlines()[1:] if ": " in line
        )
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        method, path, _ = head.split(" ", 2)
        self.requests.append((method, path, headers.get("content-type", "")))
        status, answer = self._answer(path, headers, body)
        writer.write(
            f"HTTP/1.1 {status} X\r\nContent-Length: {len(answer)}\r\n\r\n".encode() + answer
        )
        await writer.drain()
        writer.close()

    def _answer(self, path: str, headers: dict[str, str], body: bytes) -> tuple[int, bytes]:
        if headers.get("authorization") != f"bearer {self.token}":
            return 403, b'{"kind":"Status","reason":"Forbidden"}'
        name = next((n for n in self.replicas if path == SCALE.format(n)), None)
        if name is None:
            return 404, b'{"kind":"Status","reason":"NotFound"}'
        self.replicas[name] = json.loads(body)["spec"]["replicas"]
        return 200, b'{"kind":"Scale"}'


@asynccontextmanager
async def an_api_server(tmp_path: Path) -> AsyncIterator[tuple[ApiServer, KubernetesConfig]]:
    api = ApiServer(replicas={"spot": 0, "dear": 0})
    server = await asyncio.start_server(api.handle, "127.0.0.1", 0)
    token_file = tmp_path / "token"
    token_file.write_text(f"{api.token}\n")
    config = KubernetesConfig(
        base_url=f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}",
        namespace="serving",
        spot_set="spot",
        on_demand_set="dear",
        ca_file=None,
        token_file=token_file,
    )
    async with server:
        yield api, config


async def test_each_market_is_scaled_by_a_merge_patch(tmp_path: Path) -> None:
    async with an_api_server(tmp_path) as (api, config):
        provisioner = KubernetesProvisioner(config)
        await provisioner.provide(a_wish(spot=3, on_demand=1))
        await provisioner.close()
        assert api.replicas == {"spot": 3, "dear": 1}
        assert api.requests[0] == ("PATCH", SCALE.format("spot"), "application/merge-patch+json")


async def test_a_market_without_a_set_is_left_alone(tmp_path: Path) -> None:
    async with an_api_server(tmp_path) as (api, config):
        alone = KubernetesConfig(
            base_url=config.base_url,
            namespace="serving",
            spot_set="spot",
            on_demand_set="",
            ca_file=None,
            token_file=config.token_file,
        )
        provisioner = KubernetesProvisioner(alone)
        await provisioner.provide(a_wish(spot=2, on_demand=9))
        await provisioner.close()
        assert api.replicas == {"spot": 2, "dear": 0}


async def test_a_renewed_token_is_read_anew_and_a_refusal_says_why(tmp_path: Path) -> None:
    async with an_api_server(tmp_path) as (api, config):
        provisioner = KubernetesProvisioner(config)
        api.token = "renewed"
        with pytest.raises(Unavailable, match=r"HTTP 403.*Forbidden"):
            await provisioner.provide(a_wish(spot=2))
        assert config.token_file is not None
        config.token_file.write_text("renewed")
        await provisioner.provide(a_wish(spot=2))
        await provisioner.close()
        assert api.replicas["spot"] == 2


async def test_a_server_that_is_away_or_a_token_that_is_missing_is_unavailable(
    tmp_path: Path,
) -> None:
    async with an_api_server(tmp_path) as (_, config):
        pass  # it has ended
    away = KubernetesProvisioner(config)
    with pytest.raises(Unavailable, match="kubernetes"):
        await away.provide(a_wish(spot=1))
    await away.close()
    without = KubernetesProvisioner(
        KubernetesConfig(base_url=config.base_url, ca_file=None, token_file=tmp_path / "none")
    )
    with pytest.raises(Unavailable, match="token_file"):
        await without.provide(a_wish(spot=1))
    await without.close()


def test_a_certificate_that_cannot_be_read_is_the_operators_mistake(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ca_file"):
        KubernetesProvisioner(KubernetesConfig(ca_file=tmp_path / "none.crt"))
