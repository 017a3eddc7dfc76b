"""Every setting in the chart and in docker-compose.yml is one that its service takes."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import yaml

from libs.kernel.errors import ConfigError
from libs.runtime.config import read_config
from services.gpu_worker.config import WorkerConfig
from services.http_gateway.config import GatewayConfig
from services.migrator.config import MigratorConfig
from services.offline_queue.config import QueueConfig
from services.online_router.config import RouterConfig
from services.planner.config import PlannerConfig
from services.preemption_watcher.config import WatcherConfig
from tests.integration.deploy.conftest import ROOT, Rendered, containers_of

CONFIGS = {
    "gpu_worker": WorkerConfig,
    "http_gateway": GatewayConfig,
    "migrator": MigratorConfig,
    "offline_queue": QueueConfig,
    "online_router": RouterConfig,
    "planner": PlannerConfig,
    "preemption_watcher": WatcherConfig,
}


def service_of(image: str) -> str:
    """The service in an image: `tideserve/online-router:0.1.0`; a cuda-worker is a gpu_worker."""
    name = image.rpartition("/")[2].partition(":")[0].replace("-", "_")
    return "gpu_worker" if name == "cuda_worker" else name


def check(service: str, environment: Mapping[str, str]) -> None:
    ours = {name: value for name, value in environment.items() if "__" in name}
    assert all(name.startswith(f"{service.upper()}__") for name in ours), ours
    read_config(CONFIGS[service], service=service, environment=ours)


def environment_of(container: Mapping[str, Any]) -> dict[str, str]:
    """What the container is told; a node's name stands for what the downward API would give."""
    downward = "ip-10-0-1-2.ec2.internal"
    return {entry["name"]: entry.get("value", downward) for entry in container.get("env", [])}


def test_the_services_take_what_the_chart_tells_them(rendered: Rendered) -> None:
    seen = set()
    for name, template in rendered.workloads():
        if name.endswith("-nats"):
            continue
        for container in containers_of(template):
            service = service_of(container["image"])
            check(service, environment_of(container))
            seen.add(service)
    left_out = {"migrator", "planner"} if rendered.case == "everything" else {"offline_queue"}
    assert seen == set(CONFIGS) - left_out


def test_a_large_number_reaches_its_service_as_it_was_written(everything: Rendered) -> None:
    pool = everything.named("StatefulSet", "tideserve-worker-on-demand")["spec"]["template"]
    for worker in pool["spec"]["containers"]:
        assert environment_of(worker)["GPU_WORKER__KV_BYTES"] == "34359738368"


def test_a_setting_that_no_service_takes_is_noticed() -> None:
    with pytest.raises(ConfigError, match="no such field"):
        check("migrator", {"MIGRATOR__ALIAS": "a", "MIGRATOR__STREAM_REPLICAZ": "3"})


def compose_services() -> Iterator[tuple[str, dict[str, Any]]]:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    for name, service in compose["services"].items():
        if "build" in service:
            yield name, service


def with_defaults(text: str) -> str:
    """Put in what compose does where nothing is set."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


def test_the_services_take_what_compose_tells_them() -> None:
    seen = set()
    for name, service in compose_services():
        told = {key: with_defaults(str(text)) for key, text in service["environment"].items()}
        check(service["build"]["args"]["SERVICE"], told)
        assert service_of(service["image"]) == service["build"]["args"]["SERVICE"]
        assert service["image"] == f"tideserve/{name}"
        seen.add(service["build"]["args"]["SERVICE"])
    assert seen == set(CONFIGS)


def test_queues_and_gateways_have_the_files_of_batches_in_one_place() -> None:
    services = dict(compose_services())
    sharing = [services[name] for name in ("offline-queue", "http-gateway")]
    [folder] = {
        with_defaults(text)
        for service in sharing
        for key, text in service["environment"].items()
        if key.endswith("__BLOB_STORE")
    }
    for service in sharing:
        assert f"blobs:{folder.removeprefix('folder:')}" in service["volumes"]


def test_every_image_of_the_chart_is_built_by_compose(rendered: Rendered) -> None:
    built = {service["image"] for _, service in compose_services()}
    for name, template in rendered.workloads():
        if name.endswith("-nats"):
            continue
        for container in containers_of(template):
            assert container["image"].partition(":")[0] in built


def test_what_the_example_settings_name_is_what_compose_reads() -> None:
    compose = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    read = dict(re.findall(r"\$\{(\w+):-([^}]*)\}", compose))
    lines = (ROOT / ".env.example").read_text(encoding="utf-8").splitlines()
    named = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    assert named == read
