"""The manifests fit the API's schemas and the policy, and the policy sees each control that is taken away."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from kubernetes_policy import findings

ROOT = Path(__file__).resolve().parents[1]
MANIFESTS = sorted(ROOT.glob("services/*/deployment_configs/kubernetes_deployment.yaml"))
VERSION = "1.33"


def load(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


def test_every_service_with_an_image_has_a_manifest_with_its_port():
    # The page keeps no state and decides nothing: its manifest stands with the platform.
    services = {path.parent for path in ROOT.glob("services/*_api/Dockerfile")}
    assert {path.parents[1] for path in MANIFESTS} == services
    for path in MANIFESTS:
        image = (path.parents[1] / "Dockerfile").read_text()
        workload = next(d for d in load(path) if d["kind"] == "StatefulSet")
        port = workload["spec"]["template"]["spec"]["containers"][0]["ports"][0]["containerPort"]
        assert f"ENV SERVICE_PORT={port}\n" in image


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.parents[1].name)
def test_manifests_are_valid_and_keep_the_policy(path: Path):
    for document in load(path):
        kubernetes_validate.validate(document, VERSION, strict=True)
    assert findings(load(path)) == []


def test_the_schemas_see_a_field_that_does_not_exist():
    document = load(MANIFESTS[0])[0] | {"automountServiceAccountTokn": False}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(document, VERSION, strict=True)


def of(documents: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    return next(document for document in documents if document["kind"] == kind)


def pod(documents: list[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = of(documents, "StatefulSet")["spec"]["template"]["spec"]
    return found


def scaler(documents: list[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = of(documents, "HorizontalPodAutoscaler")["spec"]
    return found


Break = Callable[[list[dict[str, Any]]], Any]
BREAKS: dict[str, Break] = {
    "root": lambda d: pod(d)["securityContext"].pop("runAsNonRoot"),
    "another user": lambda d: pod(d)["securityContext"].update(runAsUser=0),
    "a group that cannot write the spool": lambda d: pod(d)["securityContext"].pop("fsGroup"),
    "no seccomp": lambda d: pod(d)["securityContext"].pop("seccompProfile"),
    "a token": lambda d: pod(d).update(automountServiceAccountToken=True),
    "no time to drain": lambda d: pod(d).pop("terminationGracePeriodSeconds"),
    "an end before the probe saw it": lambda d: pod(d)["containers"][0]["env"].pop(),
    "all on one node": lambda d: pod(d).pop("topologySpreadConstraints"),
    "escalation": lambda d: pod(d)["containers"][0]["securityContext"].pop("allowPrivilegeEscalation"),
    "a writable root": lambda d: pod(d)["containers"][0]["securityContext"].pop("readOnlyRootFilesystem"),
    "privileged": lambda d: pod(d)["containers"][0]["securityContext"].update(privileged=True),
    "capabilities": lambda d: pod(d)["containers"][0]["securityContext"].pop("capabilities"),
    "no memory limit": lambda d: pod(d)["containers"][0]["resources"]["limits"].pop("memory"),
    "no cpu request": lambda d: pod(d)["containers"][0]["resources"]["requests"].pop("cpu"),
    "no readiness": lambda d: pod(d)["containers"][0].pop("readinessProbe"),
    "no liveness": lambda d: pod(d)["containers"][0].pop("livenessProbe"),
    "the latest image": lambda d: pod(d)["containers"][0].update(image="mlops/service:latest"),
    "a password": lambda d: pod(d)["containers"][0]["env"].append({"name": "REDIS_PASSWORD", "value": "x"}),
    "a spool that dies with the pod": lambda d: of(d, "StatefulSet")["spec"].pop("volumeClaimTemplates"),
    "another headless service": lambda d: of(d, "StatefulSet")["spec"].update(serviceName="another"),
    "one replica": lambda d: of(d, "StatefulSet")["spec"].update(replicas=1),
    "a port that is not there": lambda d: of(d, "Service")["spec"]["ports"][0].update(targetPort="https"),
    "other pods": lambda d: of(d, "Service")["spec"].update(selector={"app": "another"}),
    "no budget": lambda d: d.remove(of(d, "PodDisruptionBudget")),
    "an empty budget": lambda d: of(d, "PodDisruptionBudget")["spec"].update(minAvailable=0),
    "another scale target": lambda d: scaler(d)["scaleTargetRef"].update(name="another"),
    "scaling without metric": lambda d: scaler(d).pop("metrics"),
    "everybody in": lambda d: of(d, "NetworkPolicy")["spec"]["ingress"][0].pop("from"),
    "everything out": lambda d: of(d, "NetworkPolicy")["spec"]["egress"][1].pop("ports"),
    "one way only": lambda d: of(d, "NetworkPolicy")["spec"]["policyTypes"].remove("Egress"),
}  # fmt: skip


@pytest.mark.parametrize("name", BREAKS)
def test_the_policy_sees_what_is_taken_away(name: str):
    documents = copy.deepcopy(load(MANIFESTS[0]))
    BREAKS[name](documents)
    assert findings(documents) != []
