"""The Kubernetes manifests, against KubeRay's schemas and what this project wants of them."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.unit.cluster.commands import CLUSTER

SCHEMAS = json.loads((Path(__file__).parent / "schemas" / "kuberay-v1.json").read_text())
STORAGE, JOB, RAY_CLUSTER, NETWORK = (
    yaml.safe_load((CLUSTER / "kuberay" / f"{name}.yaml").read_text())
    for name in ("storage", "rayjob", "raycluster", "network")
)
RUNTIME_DEFAULT = {"type": "RuntimeDefault"}


def errors(manifest: dict[str, Any]) -> list[str]:
    schema = {**SCHEMAS, "$ref": f"#/definitions/{manifest['kind']}"}
    return [error.message for error in jsonschema.Draft7Validator(schema).iter_errors(manifest)]


@pytest.mark.parametrize("manifest", [JOB, RAY_CLUSTER], ids=["rayjob", "raycluster"])
def test_kuberay_knows_every_field(manifest: dict[str, Any]) -> None:
    assert manifest["apiVersion"] == "ray.io/v1"
    assert errors(manifest) == []


def break_toleration(spec: dict[str, Any]) -> None:
    spec["workerGroupSpecs"][0]["template"]["spec"]["tolerations"][0]["keys"] = "spot"


def break_replicas(spec: dict[str, Any]) -> None:
    spec["workerGroupSpecs"][1]["minReplicas"] = "none"


def break_name(spec: dict[str, Any]) -> None:
    del spec["workerGroupSpecs"][0]["groupName"]


def break_mode(spec: dict[str, Any]) -> None:
    spec["authOptions"]["mode"] = "password"


def break_parameters(spec: dict[str, Any]) -> None:
    spec["headGroupSpec"]["rayStartParams"]["num-cpus"] = 0  # a number, where KubeRay wants text


@pytest.mark.parametrize(
    "damage", [break_toleration, break_replicas, break_name, break_mode, break_parameters]
)
def test_a_broken_copy_is_refused(damage: Callable[[dict[str, Any]], None]) -> None:
    manifest = copy.deepcopy(RAY_CLUSTER)
    damage(manifest["spec"])
    job = copy.deepcopy(JOB)
    damage(job["spec"]["rayClusterSpec"])
    assert len(errors(manifest)) == 1
    assert errors(manifest) == errors(job)


def test_a_misspelt_field_of_a_job_is_refused() -> None:
    job = copy.deepcopy(JOB)
    job["spec"]["shutdownAfterJobFinish"] = job["spec"].pop("shutdownAfterJobFinishes")
    assert "shutdownAfterJobFinish" in errors(job)[0]


def test_both_have_the_same_cluster() -> None:
    assert JOB["spec"]["rayClusterSpec"] == RAY_CLUSTER["spec"]


def test_ray_is_of_the_pinned_version() -> None:
    assert (
        f"ray=={RAY_CLUSTER['spec']['rayVersion']}"
        in (CLUSTER / "constraints.txt").read_text().splitlines()
    )


def mistakes(spec: dict[str, Any]) -> list[str]:
    """What this project wants of a RayCluster's spec and does not find."""
    found = []
    head, (rollout, learner) = spec["headGroupSpec"], spec["workerGroupSpecs"]
    pods = [group["template"]["spec"] for group in (head, rollout, learner)]
    containers = [container for pod in pods for container in pod["containers"]]
    if spec["authOptions"]["mode"] != "token" or not spec["authOptions"].get("secretName"):
        found.append("token")
    if head["rayStartParams"].get("num-cpus") != "0":
        found.append("head")
    spot = [
        any(
            "spot" in t["key"] or "scalesetpriority" in t["key"] for t in pod.get("tolerations", [])
        )
        for pod in pods
    ]
    if spot != [False, True, False]:
        found.append("spot")
    gpus = ["nvidia.com/gpu" in container["resources"]["limits"] for container in containers]
    if gpus != [False, False, True]:
        found.append("gpu")
    if any({"cpu", "memory"} - set(container["resources"]["requests"]) for container in containers):
        found.append("requests")
    claims = [v["persistentVolumeClaim"]["claimName"] for pod in pods for v in pod["volumes"]]
    if claims != [STORAGE["metadata"]["name"]] * len(pods) or STORAGE["spec"]["accessModes"] != [
        "ReadWriteMany"
    ]:
        found.append("storage")
    if any(env.get("value") for container in containers for env in container.get("env", [])):
        found.append("a value that may be a secret")
    if not all(
        pod["securityContext"]["runAsNonRoot"] and pod["restartPolicy"] == "Never" for pod in pods
    ):
        found.append("pod")
    if not all(pod["securityContext"].get("seccompProfile") == RUNTIME_DEFAULT for pod in pods):
        found.append("seccomp")
    locked = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    if any(container["securityContext"] != locked for container in containers):
        found.append("capabilities")
    # The head's autoscaler asks Kubernetes for pods; nobody else has business there.
    tokens = [pod.get("automountServiceAccountToken", True) for pod in pods]
    if tokens != [True, False, False]:
        found.append("service account")
    return found


def test_it_is_what_this_project_wants() -> None:
    assert mistakes(RAY_CLUSTER["spec"]) == []


def test_what_this_project_does_not_want_is_seen() -> None:
    spec = copy.deepcopy(RAY_CLUSTER["spec"])
    head, (rollout, learner) = spec["headGroupSpec"], spec["workerGroupSpecs"]
    del spec["authOptions"]["secretName"]
    head["rayStartParams"] = {}
    head["template"]["spec"]["tolerations"] = rollout["template"]["spec"].pop("tolerations")
    (container,) = rollout["template"]["spec"]["containers"]
    container["resources"] = learner["template"]["spec"]["containers"][0]["resources"]
    container["env"] = [{"name": "AWS_SECRET_ACCESS_KEY", "value": "x"}]
    del head["template"]["spec"]["containers"][0]["resources"]["requests"]["memory"]
    learner["template"]["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"] = "other"
    learner["template"]["spec"]["restartPolicy"] = "Always"
    del rollout["template"]["spec"]["securityContext"]["seccompProfile"]
    container["securityContext"]["capabilities"] = {"add": ["NET_ADMIN"]}
    del learner["template"]["spec"]["automountServiceAccountToken"]
    expected = [
        "token",
        "head",
        "spot",
        "gpu",
        "requests",
        "storage",
        "a value that may be a secret",
        "pod",
        "seccomp",
        "capabilities",
        "service account",
    ]
    assert mistakes(spec) == expected


def test_secrets_of_the_manifests_are_those_of_the_readme() -> None:
    readme = (CLUSTER / "README.md").read_text()
    pods = [RAY_CLUSTER["spec"]["headGroupSpec"], *RAY_CLUSTER["spec"]["workerGroupSpecs"]]
    names = {
        s["secretRef"]["name"]
        for pod in pods
        for c in pod["template"]["spec"]["containers"]
        for s in c["envFrom"]
    }
    for name in {RAY_CLUSTER["spec"]["authOptions"]["secretName"], *names}:
        assert f"kubectl create secret generic {name} " in readme
    assert "--from-literal=auth_token=" in readme  # the key that KubeRay looks for


def admits(
    policy: dict[str, Any], labels: dict[str, str], namespace: str | None, port: int
) -> bool:
    """Whether a NetworkPolicy lets in a pod of so many labels; `namespace` is None for its own."""

    def selected(selector: dict[str, Any], names: dict[str, str]) -> bool:
        wanted = selector.get("matchLabels", {}).items()
        there = [term["key"] for term in selector.get("matchExpressions", [])]
        return wanted <= names.items() and all(key in names for key in there)

    for rule in policy["spec"]["ingress"]:
        ports = [entry["port"] for entry in rule.get("ports", [])]
        for peer in rule["from"]:
            other = peer.get("namespaceSelector")
            inside = namespace is None if other is None else namespace is not None
            names = {} if namespace is None else {"kubernetes.io/metadata.name": namespace}
            if (
                inside
                and (other is None or selected(other, names))
                and selected(peer.get("podSelector", {}), labels)
                and (not ports or port in ports)
            ):
                return True
    return False


def test_the_network_lets_in_the_clusters_pods_and_nobody_else() -> None:
    assert NETWORK["kind"] == "NetworkPolicy" and NETWORK["spec"]["policyTypes"] == ["Ingress"]
    ours = {"ray.io/cluster": "cqlray-run-x7k2p"}
    (term,) = NETWORK["spec"]["podSelector"]["matchExpressions"]
    assert term == {"key": "ray.io/cluster", "operator": "Exists"}  # which KubeRay gives its pods
    submitter = {"batch.kubernetes.io/job-name": JOB["metadata"]["name"]}
    assert all(admits(NETWORK, labels, None, 6379) for labels in (ours, submitter))
    assert admits(NETWORK, {}, "kuberay-operator", 8265)
    assert admits(NETWORK, {}, "monitoring", 8080)
    assert not admits(NETWORK, {"app": "web"}, None, 8265)
    assert not admits(NETWORK, ours, "default", 6379)
    assert not admits(NETWORK, {}, "monitoring", 8265)
    assert not admits(NETWORK, {}, "kuberay-operator", 6379)
