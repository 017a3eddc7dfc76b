"""The chart, rendered for every case that the tests ask about."""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
CHART = ROOT / "deploy" / "helm" / "tideserve"
RENDERER = Path(__file__).with_name("render_chart.py")
CLOUDS = ("eks", "karpenter", "gke", "aks")

Manifest = dict[str, Any]

EVERYTHING = {
    "placement": "solo",
    "secrets": {"apiKeys": "who-may-ask", "peerSecret": "who-we-are"},
    "model": {"volume": {"persistentVolumeClaim": {"claimName": "models"}}},
    "image": {"pullSecrets": [{"name": "registry"}]},
    "onlineRouter": {"autoscaling": {"enabled": True}},
    "offlineQueue": {
        "enabled": True,
        "blobStore": "folder:/var/lib/tideserve/blobs",
        "volume": {"persistentVolumeClaim": {"claimName": "blobs"}},
        "autoscaling": {"enabled": True},
    },
    "pools": {
        "on-demand": {
            "workersPerNode": 4,
            "zone": "a",
            "settings": {"kv_bytes": 34_359_738_368, "dtype": "bfloat16"},
            "autoscaling": {"enabled": True},
        },
        "host": {"hostNetwork": True, "runtimeClassName": "nvidia", "priorityClassName": "high"},
    },
    "monitoring": {"enabled": True, "labels": {"release": "prometheus"}},
    "networkPolicy": {"natsClients": ["keda", "apps"], "httpClients": ["ingress"]},
}

ACCEPTED: Mapping[str, Mapping[str, Any]] = {
    "defaults": {},
    "everything": EVERYTHING,
    "one-broker": {"nats": {"replicas": 1}},
    "own-broker": {"nats": {"url": "nats://broker.example:4222"}},
    "no-policies": {"networkPolicy": {"enabled": False}},
    **{
        cloud: yaml.safe_load((CHART / f"values-{cloud}.yaml").read_text(encoding="utf-8"))
        for cloud in CLOUDS
    },
}

A_TOLERATION = {"key": "k", "operator": "Exists", "effect": "NoShedule"}
REFUSED: Mapping[str, tuple[Mapping[str, Any], str]] = {
    "a misspelt field": ({"placements": "solo"}, "placements"),
    "a misspelt field of a pool": ({"pools": {"spot": {"replcas": 1}}}, "replcas"),
    "an effect that Kubernetes does not know": (
        {"pools": {"spot": {"tolerations": [A_TOLERATION]}}},
        "effect",
    ),
    "a source of notices that no watcher has": (
        {"pools": {"spot": {"watcher": {"sources": "cluster"}}}},
        "sources",
    ),
    "two brokers": ({"nats": {"replicas": 2}}, "replicas"),
    "a gateway that is killed while streams are open": (
        {"httpGateway": {"terminationGracePeriodSeconds": 39}},
        "need 40",
    ),
    "a pool that is killed before its sessions have left": (
        {"pools": {"spot": {"drainSeconds": 26}}},
        "need 31",
    ),
    "a broker that is killed while it hands over": (
        {"nats": {"terminationGracePeriodSeconds": 49}},
        "terminationGracePeriodSeconds",
    ),
    "a provisioner without a pool": ({"planner": {"provisioner": "kubernetes"}}, "spotPool"),
    "a provisioner of a pool that is not there": (
        {"planner": {"provisioner": "kubernetes", "spotPool": "sopt", "nodesMax": 2}},
        "no pool sopt",
    ),
    "two that scale one pool": (
        {"pools": {"spot": {"autoscaling": {"enabled": True}}}},
        "planner.provisioner",
    ),
    "batches without a place for their files": ({"offlineQueue": {"enabled": True}}, "blobStore"),
}


@dataclass(frozen=True)
class Rendered:
    """What one case came to."""

    case: str
    manifests: list[Manifest]

    def of_kind(self, *kinds: str) -> list[Manifest]:
        return [manifest for manifest in self.manifests if manifest["kind"] in kinds]

    def named(self, kind: str, name: str) -> Manifest:
        found = [m for m in self.of_kind(kind) if m["metadata"]["name"] == name]
        assert len(found) == 1, f"{self.case}: {len(found)} {kind} {name}"
        return found[0]

    def workloads(self) -> Iterator[tuple[str, Manifest]]:
        """Each workload's name and its pods' template."""
        for manifest in self.of_kind("Deployment", "StatefulSet"):
            yield manifest["metadata"]["name"], manifest["spec"]["template"]

    def pools(self) -> list[Manifest]:
        """The StatefulSets with workers."""
        return [m for m in self.of_kind("StatefulSet") if "-worker-" in m["metadata"]["name"]]


def containers_of(template: Manifest) -> list[Manifest]:
    """All containers of a pod, sidecars first."""
    spec = template["spec"]
    return [*spec.get("initContainers", []), *spec["containers"]]


@pytest.fixture(scope="session")
def answers() -> dict[str, Any]:
    """Everything that Helm said, by case."""
    if importlib.util.find_spec("helm_python") is None:
        pytest.skip("no Helm: helm-python-sdk is not installed")
    values = {**ACCEPTED, **{case: refused for case, (refused, _) in REFUSED.items()}}
    result = subprocess.run(
        [sys.executable, RENDERER, CHART],
        input=json.dumps(values),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    parsed: dict[str, Any] = json.loads(result.stdout)
    return parsed


@pytest.fixture(params=ACCEPTED)
def rendered(request: pytest.FixtureRequest, answers: dict[str, Any]) -> Rendered:
    return _rendered(answers, request.param)


@pytest.fixture(params=CLOUDS)
def on_cloud(request: pytest.FixtureRequest, answers: dict[str, Any]) -> Rendered:
    return _rendered(answers, request.param)


@pytest.fixture
def everything(answers: dict[str, Any]) -> Rendered:
    return _rendered(answers, "everything")


@pytest.fixture
def karpenter(answers: dict[str, Any]) -> Rendered:
    return _rendered(answers, "karpenter")


@pytest.fixture
def defaults(answers: dict[str, Any]) -> Rendered:
    return _rendered(answers, "defaults")


def _rendered(answers: dict[str, Any], case: str) -> Rendered:
    manifests = answers[case]
    assert isinstance(manifests, list), f"{case}: {manifests}"
    return Rendered(case=case, manifests=manifests)
