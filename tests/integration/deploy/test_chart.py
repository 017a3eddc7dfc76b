"""The chart's manifests, taken for themselves: valid, consistent, hardened."""

import json
from typing import Any

import jsonschema
import kubernetes_validate
import pytest

from tests.integration.deploy.conftest import ACCEPTED, REFUSED, Manifest, Rendered, containers_of

KUBERNETES_VERSIONS = ("1.29", "1.34")
NO_SCHEMA_OF_KUBERNETES = ("ScaledObject", "PodMonitor")
WARNING = 2
"""Helm's severity: 1 informs, 2 warns, 3 fails."""

TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
SCALED_OBJECT = {
    "type": "object",
    "additionalProperties": False,
    "required": ["scaleTargetRef", "triggers"],
    "properties": {
        "scaleTargetRef": {**TEXTS, "required": ["name"]},
        "minReplicaCount": {"type": "integer"},
        "maxReplicaCount": {"type": "integer"},
        "pollingInterval": {"type": "integer"},
        "advanced": {"type": "object", "required": ["horizontalPodAutoscalerConfig"]},
        "triggers": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "additionalProperties": False,
                "required": ["type", "metadata"],
                "properties": {
                    "type": {"enum": ["prometheus", "nats-jetstream"]},
                    # KEDA refuses a number here.
                    "metadata": TEXTS,
                },
            },
        },
    },
}
"""What is used of keda.sh/v1alpha1, by KEDA's documentation of the ScaledObject."""


def test_the_linter_has_nothing_to_say(answers: dict[str, Any]) -> None:
    assert [said for said in answers["lint"] if said["severity"] >= WARNING] == []


@pytest.mark.parametrize("case", REFUSED)
def test_values_that_cannot_work_are_refused_by_name(case: str, answers: dict[str, Any]) -> None:
    assert isinstance(answers[case], str), f"{case} was rendered"
    assert REFUSED[case][1] in answers[case]


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
def test_every_manifest_is_valid_for_kubernetes(answers: dict[str, Any], version: str) -> None:
    # Most are the same in all cases, and checking one takes 50 ms.
    distinct = {
        json.dumps(manifest)
        for case in ACCEPTED
        for manifest in answers[case]
        if manifest["kind"] not in NO_SCHEMA_OF_KUBERNETES
    }
    for manifest in sorted(distinct):
        kubernetes_validate.validate(json.loads(manifest), version, strict=True)


def test_the_validation_sees_a_field_that_is_not_there(defaults: Rendered) -> None:
    manifest = defaults.of_kind("Deployment")[0]
    manifest["spec"]["template"]["spec"]["terminationGracePeriod"] = 30
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(manifest, KUBERNETES_VERSIONS[0], strict=True)


def test_what_keda_reads_has_its_form_and_a_target_whose_size_is_nobody_elses(
    everything: Rendered,
) -> None:
    scaled = everything.of_kind("ScaledObject")
    assert len(scaled) == 3
    for manifest in scaled:
        spec = manifest["spec"]
        jsonschema.validate(spec, SCALED_OBJECT)
        target = everything.named(spec["scaleTargetRef"]["kind"], spec["scaleTargetRef"]["name"])
        assert "replicas" not in target["spec"]
        assert spec["minReplicaCount"] <= spec["maxReplicaCount"]


def test_names_are_unique_and_short_enough(rendered: Rendered) -> None:
    names = [(m["kind"], m["metadata"]["name"]) for m in rendered.manifests]
    assert len(names) == len(set(names))
    # Kubernetes adds a hyphen and ten characters for a label of 63 at most; a release's name may be
    # longer than ours by 24 - len("tideserve").
    assert all(len(name) + 15 <= 52 for kind, name in names if kind == "StatefulSet")


def selects(selector: Manifest, labels: Manifest) -> bool:
    return all(labels.get(key) == value for key, value in selector.items())


def test_every_selector_finds_pods(rendered: Rendered) -> None:
    labels = [template["metadata"]["labels"] for _, template in rendered.workloads()]
    for manifest in rendered.manifests:
        spec = manifest.get("spec", {})
        selector = spec.get("podSelector") or spec.get("selector")
        if selector is None:
            continue
        wanted = selector.get("matchLabels", selector)
        found = [one for one in labels if selects(wanted, one)]
        assert found, f"{manifest['kind']} {manifest['metadata']['name']} selects nothing"


def test_a_workload_selects_its_own_pods_alone(rendered: Rendered) -> None:
    for manifest in rendered.of_kind("Deployment", "StatefulSet", "PodDisruptionBudget"):
        selector = manifest["spec"]["selector"]["matchLabels"]
        found = [
            name
            for name, template in rendered.workloads()
            if selects(selector, template["metadata"]["labels"])
        ]
        assert found == [manifest["metadata"]["name"]]


def test_every_workload_may_lose_one_pod_at_a_time_and_never_blocks_a_drain(
    rendered: Rendered,
) -> None:
    budgets = {m["metadata"]["name"]: m["spec"] for m in rendered.of_kind("PodDisruptionBudget")}
    assert set(budgets) == {name for name, _ in rendered.workloads()}
    assert {budget["maxUnavailable"] for budget in budgets.values()} == {1}


def test_containers_run_without_privileges_on_a_file_system_that_they_cannot_write(
    rendered: Rendered,
) -> None:
    for name, template in rendered.workloads():
        assert template["spec"]["securityContext"]["runAsNonRoot"] is True, name
        assert template["spec"]["automountServiceAccountToken"] is (
            template["spec"].get("serviceAccountName") == "tideserve-planner"
        )
        for container in containers_of(template):
            security = container["securityContext"]
            assert security["readOnlyRootFilesystem"] is True
            assert security["allowPrivilegeEscalation"] is False
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["limits"]["memory"]


def test_the_watcher_alone_holds_a_token_of_the_api_server(rendered: Rendered) -> None:
    for pool in rendered.pools():
        holders = [
            container["name"]
            for container in containers_of(pool["spec"]["template"])
            if any(mount["name"] == "token" for mount in container["volumeMounts"])
        ]
        assert holders == ["watcher"]


def test_the_planner_may_scale_the_sets_it_was_given_and_nothing_else(karpenter: Rendered) -> None:
    (rule,) = karpenter.named("Role", "tideserve-planner")["rules"]
    assert rule["resources"] == ["statefulsets/scale"]
    assert set(rule["verbs"]) == {"get", "patch"}
    sets = {pool["metadata"]["name"] for pool in karpenter.pools()}
    assert set(rule["resourceNames"]) == sets
    assert not any("replicas" in pool["spec"] for pool in karpenter.pools())


def test_no_port_is_open_that_a_policy_does_not_name(everything: Rendered) -> None:
    policies = everything.of_kind("NetworkPolicy")
    everybody = everything.named("NetworkPolicy", "tideserve-metrics")["spec"]
    for _, template in everything.workloads():
        selector = everybody["podSelector"]["matchLabels"]
        assert selects(selector, template["metadata"]["labels"]), "a pod that anybody may reach"
    unguarded = [
        port
        for policy in policies
        for rule in policy["spec"].get("ingress", [])
        if "from" not in rule
        for port in rule["ports"]
    ]
    assert unguarded == []


def test_the_gateway_alone_is_open_to_whoever_reaches_it(defaults: Rendered) -> None:
    open_to_all = [
        (policy["metadata"]["name"], rule["ports"])
        for policy in defaults.of_kind("NetworkPolicy")
        for rule in policy["spec"].get("ingress", [])
        if "from" not in rule
    ]
    assert open_to_all == [("tideserve-http-gateway", [{"port": 8000}])]


def test_every_metrics_port_is_scraped_once(everything: Rendered) -> None:
    (monitor,) = everything.of_kind("PodMonitor")
    scraped = [endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]]
    assert len(scraped) == len(set(scraped))
    offered = {
        port["name"]
        for name, template in everything.workloads()
        if not name.endswith("-nats")
        for container in containers_of(template)
        for port in container["ports"]
    }
    assert offered == set(scraped)


def test_secrets_are_files_of_those_alone_who_read_them(everything: Rendered) -> None:
    read_by = {"who-may-ask": {"gateway": "API_KEYS_FILE"}, "who-we-are": {"worker": "SECRET_FILE"}}
    for name, template in everything.workloads():
        volumes = template["spec"].get("volumes", [])
        held = [volume["secret"]["secretName"] for volume in volumes if "secret" in volume]
        expected = [s for s, readers in read_by.items() if any(part in name for part in readers)]
        assert held == expected, name
        for secret in held:
            (setting,) = read_by[secret].values()
            for container in template["spec"]["containers"]:
                mounts = {m["name"]: m["mountPath"] for m in container["volumeMounts"]}
                told = [e["value"] for e in container["env"] if e["name"].endswith(setting)]
                assert [value.startswith(mounts["secret"] + "/") for value in told] == [True]
    (monitor,) = everything.of_kind("PodMonitor")
    asking = {e["port"]: e.get("authorization") for e in monitor["spec"]["podMetricsEndpoints"]}
    key = {"credentials": {"name": "who-may-ask", "key": "metrics-key"}}
    assert asking.pop("metrics") == key
    assert set(asking.values()) == {None}


def test_without_secrets_nobody_mounts_any(defaults: Rendered) -> None:
    for name, template in defaults.workloads():
        assert not any("secret" in volume for volume in template["spec"].get("volumes", [])), name
