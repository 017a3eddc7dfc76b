"""Where the chart's pods may run, and whether their time there is enough to leave."""

from dataclasses import dataclass
from typing import Any

import pytest

from tests.integration.deploy.conftest import Manifest, Rendered, containers_of

NO_SCHEDULE = "NoSchedule"
HAND_OVER_S = 5
"""What remains of a grace period for sessions that did not end within the drain."""
KUBELET_LATENESS_S = 10
"""Between a cloud's notice and SIGTERM to the pods: found by a poll of 5 s, and told."""


@dataclass(frozen=True)
class Node:
    """A machine as the scheduler sees it."""

    labels: dict[str, str]
    taints: tuple[tuple[str, str], ...] = ()
    """Key and value; all of them keep pods off."""


GPU_TAINT = ("nvidia.com/gpu", "present")
SPOT_NODES = {
    "eks": Node({"eks.amazonaws.com/capacityType": "SPOT"}, (GPU_TAINT,)),
    "karpenter": Node({"karpenter.sh/capacity-type": "spot"}, (GPU_TAINT,)),
    "gke": Node(
        {"cloud.google.com/gke-spot": "true", "cloud.google.com/gke-accelerator": "nvidia-l4"},
        (GPU_TAINT, ("cloud.google.com/gke-spot", "true")),
    ),
    "aks": Node(
        {"kubernetes.azure.com/scalesetpriority": "spot"},
        (("kubernetes.azure.com/scalesetpriority", "spot"), ("sku", "gpu")),
    ),
}
"""By each cloud's documentation, with the taints that users are told to add."""
ON_DEMAND_NODES = {
    "eks": Node({"eks.amazonaws.com/capacityType": "ON_DEMAND"}, (GPU_TAINT,)),
    "karpenter": Node({"karpenter.sh/capacity-type": "on-demand"}, (GPU_TAINT,)),
    "gke": Node({"cloud.google.com/gke-accelerator": "nvidia-l4"}, (GPU_TAINT,)),
    "aks": Node({"kubernetes.azure.com/mode": "User"}, (("sku", "gpu"),)),
}
PLAIN_NODE = Node({"kubernetes.io/arch": "amd64"})
NOTICE_S = {"eks": 120, "karpenter": 120, "gke": 15, "aks": 30}
"""What each cloud leaves a pod; docs/operators/notices.md."""


def can_run(pod: Manifest, node: Node) -> bool:
    """Tell what kube-scheduler would: selector, required affinity, taints."""
    selector = pod.get("nodeSelector", {})
    if any(node.labels.get(key) != value for key, value in selector.items()):
        return False
    affinity = pod.get("affinity", {}).get("nodeAffinity", {})
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution")
    if required and not any(_matches(term, node) for term in required["nodeSelectorTerms"]):
        return False
    return all(
        any(_tolerates(toleration, key, value) for toleration in pod.get("tolerations", []))
        for key, value in node.taints
    )


def _matches(term: Manifest, node: Node) -> bool:
    for rule in term["matchExpressions"]:
        assert rule["operator"] == "NotIn"
        if node.labels.get(rule["key"]) in rule["values"]:
            return False
    return True


def _tolerates(toleration: Manifest, key: str, value: str) -> bool:
    assert toleration["operator"] in ("Exists", "Equal")
    if toleration["key"] != key or toleration["effect"] != NO_SCHEDULE:
        return False
    return toleration["operator"] == "Exists" or toleration["value"] == value


def pool(rendered: Rendered, name: str) -> Manifest:
    template = rendered.named("StatefulSet", f"tideserve-worker-{name}")["spec"]["template"]
    spec: Manifest = template["spec"]
    return spec


def test_workers_of_each_market_run_on_its_nodes_alone(on_cloud: Rendered) -> None:
    spot, on_demand = SPOT_NODES[on_cloud.case], ON_DEMAND_NODES[on_cloud.case]
    assert can_run(pool(on_cloud, "spot"), spot)
    assert not can_run(pool(on_cloud, "spot"), on_demand)
    assert can_run(pool(on_cloud, "on-demand"), on_demand)
    assert not can_run(pool(on_cloud, "on-demand"), spot)


@pytest.mark.parametrize("cloud", SPOT_NODES)
def test_broker_routers_and_planners_are_never_on_spot_nodes(
    rendered: Rendered, cloud: str
) -> None:
    untainted = Node(SPOT_NODES[cloud].labels)
    for name, template in rendered.workloads():
        if "-worker-" not in name:
            assert not can_run(template["spec"], untainted), name
            assert can_run(template["spec"], PLAIN_NODE), name


def test_a_worker_knows_of_its_node_how_it_was_bought(on_cloud: Rendered) -> None:
    for name, market in (("spot", "spot"), ("on-demand", "on_demand")):
        (worker,) = pool(on_cloud, name)["containers"]
        assert environment_of(worker)["GPU_WORKER__MARKET"] == market
        assert worker["resources"]["limits"]["nvidia.com/gpu"] == 1


def test_a_spot_pod_has_left_before_the_cloud_takes_its_node(on_cloud: Rendered) -> None:
    grace_s = pool(on_cloud, "spot")["terminationGracePeriodSeconds"]
    notice_s = NOTICE_S[on_cloud.case]
    assert grace_s <= notice_s
    (worker,) = pool(on_cloud, "spot")["containers"]
    drain_s = int(environment_of(worker)["GPU_WORKER__DRAIN_MS"]) / 1000
    lateness_s = 0 if on_cloud.case == "gke" else KUBELET_LATENESS_S
    assert lateness_s + drain_s <= notice_s


def test_no_container_is_killed_before_it_had_its_time_to_end(rendered: Rendered) -> None:
    for name, template in rendered.workloads():
        spec = template["spec"]
        for container in spec["containers"]:
            needed_s = seconds_to_leave(container)
            assert needed_s + HAND_OVER_S <= spec["terminationGracePeriodSeconds"], name


def seconds_to_leave(container: Manifest) -> float:
    """The hook's time counts within the grace period, as the drain's does."""
    environment = environment_of(container)
    command = container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", [])
    hook_s = int(command[1]) if command[:1] == ["sleep"] else 0
    if container["name"] == "nats":
        assert command[0] == "nats-server"
        return 40  # lame_duck_grace_period and lame_duck_duration; see test_chart_broker.py
    drain_s = int(environment.get("GPU_WORKER__DRAIN_MS", 0)) / 1000
    return hook_s + drain_s + int(environment.get("HTTP_GATEWAY__SHUTDOWN_WAIT_S", 0))


def environment_of(container: Manifest) -> dict[str, str]:
    """The settings that stand in the manifest; of the downward API, its field's path."""
    return {
        entry["name"]: entry["value"] if "value" in entry else _field_of(entry)
        for entry in container.get("env", [])
    }


def _field_of(entry: dict[str, Any]) -> str:
    path: str = entry["valueFrom"]["fieldRef"]["fieldPath"]
    return path


def test_the_watcher_starts_first_ends_last_and_names_the_node_as_its_workers_do(
    rendered: Rendered,
) -> None:
    for stateful_set in rendered.pools():
        spec = stateful_set["spec"]["template"]["spec"]
        (watcher,) = spec["initContainers"]
        assert watcher["restartPolicy"] == "Always"
        told = environment_of(watcher)
        grace_s = spec["terminationGracePeriodSeconds"]
        assert told["PREEMPTION_WATCHER__KUBERNETES__GRACE_MS"] == str(grace_s * 1000)
        for worker in spec["containers"]:
            heard = environment_of(worker)
            assert heard["GPU_WORKER__NODE_ID"] == told["PREEMPTION_WATCHER__NODE_ID"]
            assert heard["GPU_WORKER__NODE_SOCKET"] == told["PREEMPTION_WATCHER__SOCKET_PATH"]
            assert mounts_of(worker)["/run/tideserve"] == mounts_of(watcher)["/run/tideserve"]


def mounts_of(container: Manifest) -> dict[str, str]:
    return {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}


def test_each_worker_of_a_node_has_ports_of_its_own(everything: Rendered) -> None:
    for stateful_set in everything.pools():
        ports = [
            port["containerPort"]
            for container in containers_of(stateful_set["spec"]["template"])
            for port in container["ports"]
        ]
        assert len(ports) == len(set(ports))
