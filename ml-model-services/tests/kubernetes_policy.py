"""What every manifest of a decision service must say; pure, one finding a line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

KINDS = {
    "ServiceAccount",
    "Service",
    "StatefulSet",
    "PodDisruptionBudget",
    "HorizontalPodAutoscaler",
    "NetworkPolicy",
}

# Twice what a service gives its requests and its spool at the end by default, and two seconds.
SHUTDOWN_SECONDS = 12


def findings(documents: list[dict[str, Any]]) -> list[str]:
    """Return what is missing or contradicts itself in the manifests of one service."""
    kinds = {document["kind"] for document in documents}
    if missing := sorted(KINDS - kinds):
        return [f"missing: {', '.join(missing)}"]
    workload = _one(documents, "StatefulSet")
    name = workload["metadata"]["name"]
    return [
        *_pod(workload["spec"]["template"]["spec"]),
        *_workload(workload, documents),
        *_selectors(documents, {"app.kubernetes.io/name": name}),
        *_scaling(documents, name),
    ]


def _one(documents: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    return next(document for document in documents if document["kind"] == kind)


def _pod(pod: dict[str, Any]) -> Iterator[str]:
    context = pod.get("securityContext", {})
    yield from _wrong(context, {"runAsNonRoot": True, "runAsUser": 10001, "fsGroup": 10001}, "pod")
    if context.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield "pod: seccompProfile is not RuntimeDefault"
    if pod.get("automountServiceAccountToken") is not False:
        yield "pod: mounts the token of its service account"
    if not pod.get("topologySpreadConstraints"):
        yield "pod: replicas are not spread over nodes"
    for container in pod["containers"]:
        yield from _container(container)
        yield from _draining(container, pod.get("terminationGracePeriodSeconds", 0))


def _container(container: dict[str, Any]) -> Iterator[str]:
    context = container.get("securityContext", {})
    wanted = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "privileged": False}
    yield from _wrong(context, wanted, "container")
    if context.get("capabilities", {}).get("drop") != ["ALL"]:
        yield "container: keeps capabilities"
    resources = container.get("resources", {})
    for group, each in (("requests", "cpu"), ("requests", "memory"), ("limits", "cpu"), ("limits", "memory")):
        if each not in resources.get(group, {}):
            yield f"container: no {group} of {each}"
    for probe, path in (
        ("startupProbe", "/livez"),
        ("livenessProbe", "/livez"),
        ("readinessProbe", "/readyz"),
    ):
        if container.get(probe, {}).get("httpGet", {}).get("path") != path:
            yield f"container: {probe} does not ask {path}"
    if ":" not in container["image"] or container["image"].endswith(":latest"):
        yield "container: the image has no fixed version"
    for variable in container.get("env", []):
        if any(word in variable["name"] for word in ("PASSWORD", "SECRET", "TOKEN")) and "value" in variable:
            yield f"container: {variable['name']} stands in the manifest"


def _draining(container: dict[str, Any], grace: int) -> Iterator[str]:
    probe = container.get("readinessProbe", {})
    unseen = probe.get("periodSeconds", 10) * probe.get("failureThreshold", 3)
    drain = next((float(v["value"]) for v in container.get("env", []) if v["name"] == "DRAIN_SECONDS"), 0.0)
    if drain <= unseen:
        yield "container: ends before its probe has taken it out of the service"
    if grace <= drain + SHUTDOWN_SECONDS:
        yield "container: is killed before it has drained"


def _workload(workload: dict[str, Any], documents: list[dict[str, Any]]) -> Iterator[str]:
    if workload["spec"].get("replicas", 1) < 2:
        yield "one replica only"
    mounts = {
        m["name"] for c in workload["spec"]["template"]["spec"]["containers"] for m in c["volumeMounts"]
    }
    claims = {claim["metadata"]["name"] for claim in workload["spec"].get("volumeClaimTemplates", [])}
    if "spool" not in mounts & claims:
        yield "the spool is not on a volume of its own"
    headless = [d for d in documents if d["kind"] == "Service" and d["spec"].get("clusterIP") == "None"]
    if [service["metadata"]["name"] for service in headless] != [workload["spec"].get("serviceName")]:
        yield "serviceName is not the headless service"
    ports = {
        p["name"] for c in workload["spec"]["template"]["spec"]["containers"] for p in c.get("ports", [])
    }
    for service in (d for d in documents if d["kind"] == "Service"):
        for port in service["spec"]["ports"]:
            if port["targetPort"] not in ports:
                yield f"service {service['metadata']['name']}: no container has a port {port['targetPort']}"


def _selectors(documents: list[dict[str, Any]], wanted: dict[str, str]) -> Iterator[str]:
    for document in documents:
        spec = document.get("spec", {})
        found = {
            "Service": spec.get("selector"),
            "StatefulSet": spec.get("selector", {}).get("matchLabels"),
            "PodDisruptionBudget": spec.get("selector", {}).get("matchLabels"),
            "NetworkPolicy": spec.get("podSelector", {}).get("matchLabels"),
        }
        if document["kind"] in found and found[document["kind"]] != wanted:
            yield f"{document['kind']}: selects other pods"
    labels = _one(documents, "StatefulSet")["spec"]["template"]["metadata"]["labels"]
    if not wanted.items() <= labels.items():
        yield "StatefulSet: its pods do not have the label that all select"


def _scaling(documents: list[dict[str, Any]], name: str) -> Iterator[str]:
    scaler, budget = (
        _one(documents, "HorizontalPodAutoscaler")["spec"],
        _one(documents, "PodDisruptionBudget"),
    )
    if scaler["scaleTargetRef"] != {"apiVersion": "apps/v1", "kind": "StatefulSet", "name": name}:
        yield "HorizontalPodAutoscaler: scales something else"
    if scaler.get("minReplicas", 1) < 2 or not scaler.get("metrics"):
        yield "HorizontalPodAutoscaler: goes below two replicas, or by no metric"
    if budget["spec"].get("minAvailable", 0) < 1:
        yield "PodDisruptionBudget: allows that no pod is left"
    policy = _one(documents, "NetworkPolicy")["spec"]
    if set(policy.get("policyTypes", [])) != {"Ingress", "Egress"}:
        yield "NetworkPolicy: does not hold both ways"
    if any(not rule.get("from") for rule in policy.get("ingress", [])):
        yield "NetworkPolicy: lets everybody in"
    if any(not rule.get("ports") for rule in policy.get("egress", [])):
        yield "NetworkPolicy: lets everything out"


def _wrong(found: dict[str, Any], wanted: dict[str, Any], where: str) -> Iterator[str]:
    for name, value in wanted.items():
        if found.get(name) != value:
            yield f"{where}: {name} is {found.get(name)}, not {value}"
