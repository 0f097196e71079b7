"""Every way in which one control of a built overlay can be taken away: each a change of one document."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from manifest_policy import LONG_RUNNING, Document

Change = Callable[[Document], Any]


def mutations(documents: list[Document]) -> Iterator[tuple[str, int, Change | None]]:
    """Yield name, index of the document and what changes it; None takes the whole document away."""
    for position, document in enumerate(documents):
        kind = document["kind"]
        named = f"{kind} {document['metadata']['name']}"
        if kind in PROTECTIONS and _is_needed(document, documents):
            yield f"{named}: gone", position, None
        if kind in (*LONG_RUNNING, "Job"):
            for name, change in _pod(document["spec"]["template"], kind in LONG_RUNNING):
                yield f"{named}: {name}", position, _below(change, "spec", "template")
        if kind == "PodTemplate":
            for name, change in _pod(document["template"], False):
                yield f"{named}: {name}", position, _below(change, "template")
        for name, change in OF_A_KIND.get(kind, lambda _: ())(document):
            yield f"{named}: {name}", position, change


PROTECTIONS = {"PodDisruptionBudget", "NetworkPolicy", "ServiceAccount", "ConfigMap"}


def _is_needed(document: Document, documents: list[Document]) -> bool:
    """Whether something in the overlay relies on the document; data servers' policies may have no user."""
    if document["kind"] != "NetworkPolicy":
        return document["kind"] != "ConfigMap" or document["metadata"]["name"] != "kube-root-ca.crt"
    labels = document["spec"]["podSelector"].get("matchLabels", {})
    if document["metadata"]["name"] == "resolve-names":
        return False  # without it names are not resolved: more is closed, not less
    if document["metadata"]["name"].startswith("reach-"):
        return any(labels.items() <= found.items() for found in _pod_labels(document, documents))
    return True


def _pod_labels(document: Document, documents: list[Document]) -> Iterator[Document]:
    for other in documents:
        if other["metadata"].get("namespace") == document["metadata"].get("namespace"):
            template = other.get("template") or other.get("spec", {}).get("template") or {}
            yield template.get("metadata", {}).get("labels", {})


def _below(change: Change, *path: str) -> Change:
    def apply(document: Document) -> None:
        for step in path:
            document = document[step]
        change(document)

    return apply


def _pop(*path: str | int) -> Change:
    def apply(document: Any) -> None:
        for step in path[:-1]:
            document = document[step]
        document.pop(path[-1])

    return apply


def _set(value: Any, *path: str | int) -> Change:
    def apply(document: Any) -> None:
        for step in path[:-1]:
            document = document[step] if isinstance(step, int) else document.setdefault(step, {})
        document[path[-1]] = value

    return apply


def _pod(template: Document, long_running: bool) -> Iterator[tuple[str, Change]]:
    pod = template["spec"]
    for control in ("runAsNonRoot", "runAsUser", "runAsGroup", "fsGroup", "seccompProfile"):
        yield f"no {control}", _pop("spec", "securityContext", control)
    yield "user 0", _set(0, "spec", "securityContext", "runAsUser")
    yield "unconfined", _set({"type": "Unconfined"}, "spec", "securityContext", "seccompProfile")
    yield "no word on tokens", _pop("spec", "automountServiceAccountToken")
    yield "a token", _set(True, "spec", "automountServiceAccountToken")
    yield "no account", _pop("spec", "serviceAccountName")
    for host in ("hostNetwork", "hostPID", "hostIPC"):
        yield host, _set(True, "spec", host)
    if long_running:
        yield "no time to end", _pop("spec", "terminationGracePeriodSeconds")
        yield "all on one node", _pop("spec", "topologySpreadConstraints")
    yield "an unknown data server", _set("true", "metadata", "labels", "mlops-platform/reach-mainframe")
    for name in template["metadata"].get("annotations", {}):
        if "waiver." in name:
            yield f"{name} without reason", _set("because", "metadata", "annotations", name)
            yield f"no {name}", _pop("metadata", "annotations", name)
    for number, volume in enumerate(pod.get("volumes", [])):
        yield from _volume(volume, number)
    for group in ("initContainers", "containers"):
        for number, container in enumerate(pod.get(group, [])):
            probes = long_running and group == "containers"
            yield from _container(container, pod, ("spec", group, number), probes)


def _volume(volume: Document, number: int) -> Iterator[tuple[str, Change]]:
    at, name = ("spec", "volumes", number), volume["name"]
    yield f"{name} of the node", _set({"path": "/"}, *at, "hostPath")
    if "emptyDir" in volume:
        yield f"{name} without limit", _pop(*at, "emptyDir", "sizeLimit")
    for kind in ("secret", "projected"):
        if kind in volume:
            yield f"{name} for everybody", _pop(*at, kind, "defaultMode")
    if "persistentVolumeClaim" in volume:
        yield f"{name} without claim", _set("none", *at, "persistentVolumeClaim", "claimName")
    if "configMap" in volume:
        yield f"{name} of nothing", _set("none", *at, "configMap", "name")


def _container(
    container: Document, pod: Document, at: tuple[str | int, ...], probes: bool
) -> Iterator[tuple[str, Change]]:
    name = container["name"]
    for control in ("allowPrivilegeEscalation", "readOnlyRootFilesystem", "capabilities", "privileged"):
        yield f"{name}: no {control}", _pop(*at, "securityContext", control)
    yield f"{name}: privileged", _set(True, *at, "securityContext", "privileged")
    yield f"{name}: NET_ADMIN", _set(["NET_ADMIN"], *at, "securityContext", "capabilities", "add")
    for group in ("requests", "limits"):
        for what in ("cpu", "memory"):
            yield f"{name}: no {group} of {what}", _pop(*at, "resources", group, what)
    image = container["image"].rpartition(":")[0]
    for version in ("", ":latest", ":dev"):
        yield f"{name}: image{version}", _set(image + version, *at, "image")
    yield f"{name}: asks at every start", _set("Always", *at, "imagePullPolicy")
    if "env" in container:
        password = {"name": "REDIS_PASSWORD", "value": "x"}
        yield f"{name}: a password", _set([*container["env"], password], *at, "env")
    if container.get("ports"):
        yield f"{name}: the node's port", _set(8080, *at, "ports", 0, "hostPort")
    for probe in ("startupProbe", "readinessProbe", "livenessProbe") if probes else ():
        yield f"{name}: no {probe}", _pop(*at, probe)
    for number, source in enumerate(container.get("envFrom", [])):
        if "configMapRef" in source:
            yield f"{name}: no settings", _set("none", *at, "envFrom", number, "configMapRef", "name")
    files = {v["name"] for v in pod.get("volumes", []) if {"secret", "projected", "configMap"} & v.keys()}
    for number, mount in enumerate(container.get("volumeMounts", [])):
        if mount["name"] in files:
            yield f"{name}: {mount['name']} writable", _pop(*at, "volumeMounts", number, "readOnly")


def _long_running(document: Document) -> Iterator[tuple[str, Change]]:
    yield "selects others", _set({"app": "another"}, "spec", "selector", "matchLabels")
    if document["spec"].get("replicas", 0) > 1:
        yield "one of it", _set(1, "spec", "replicas")
    if "replicas" not in document["spec"]:
        yield "a number beside the autoscaler", _set(2, "spec", "replicas")
    if document["kind"] == "StatefulSet":
        yield "no headless service", _set("another", "spec", "serviceName")
        yield "no volume", _pop("spec", "volumeClaimTemplates")


def _job(_: Document) -> Iterator[tuple[str, Change]]:
    for name in ("backoffLimit", "activeDeadlineSeconds", "ttlSecondsAfterFinished"):
        yield f"no {name}", _pop("spec", name)
    yield "restarts", _set("OnFailure", "spec", "template", "spec", "restartPolicy")


def _service(document: Document) -> Iterator[tuple[str, Change]]:
    yield "open to the world", _set("LoadBalancer", "spec", "type")
    if "selector" in document["spec"]:
        yield "selects nothing", _set({"app": "another"}, "spec", "selector")
        yield "a port that is not there", _set("https", "spec", "ports", 0, "targetPort")


def _slice(_: Document) -> Iterator[tuple[str, Change]]:
    yield "of another service", _set({}, "metadata", "labels")


def _budget(document: Document) -> Iterator[tuple[str, Change]]:
    control = "minAvailable" if "minAvailable" in document["spec"] else "maxUnavailable"
    yield "without number", _pop("spec", control)
    yield "for others", _set({"app": "another"}, "spec", "selector", "matchLabels")


def _scaler(_: Document) -> Iterator[tuple[str, Change]]:
    yield "down to one", _set(1, "spec", "minReplicas")
    yield "a ceiling below the floor", _set(1, "spec", "maxReplicas")
    yield "by nothing", _pop("spec", "metrics")
    yield "of another", _set("another", "spec", "scaleTargetRef", "name")


def _network(document: Document) -> Iterator[tuple[str, Change]]:
    for name in document["metadata"].get("annotations", {}):
        yield f"no {name}", _pop("metadata", "annotations", name)
    if document["metadata"]["name"] == "default-deny":
        yield "one way only", _set(["Ingress"], "spec", "policyTypes")
        yield "for some", _set({"matchLabels": {"app": "x"}}, "spec", "podSelector")
        yield "with a way in", _set([{}], "spec", "ingress")
    for direction, end in (("ingress", "from"), ("egress", "to")):
        rules = document["spec"].get(direction, [])
        if rules:
            types = [t for t in document["spec"]["policyTypes"] if t.lower() != direction]
            yield f"{direction} does not hold", _set(types, "spec", "policyTypes")
        for number, rule in enumerate(rules):
            at = ("spec", direction, number)
            yield f"{direction} {number}: every port", _pop(*at, "ports")
            if rule.get(end):
                yield f"{direction} {number}: everybody", _pop(*at, end)
            for peer, each in enumerate(rule.get(end, [])):
                for selector in each.keys() - {"ipBlock"}:
                    yield f"{direction} {number}: any {selector}", _set({}, *at, end, peer, selector)
                if "ipBlock" in each:
                    yield (
                        f"{direction} {number}: the world",
                        _set("0.0.0.0/0", *at, end, peer, "ipBlock", "cidr"),
                    )


def _namespace(_: Document) -> Iterator[tuple[str, Change]]:
    yield "any pod", _pop("metadata", "labels", "pod-security.kubernetes.io/enforce")
    yield "baseline", _set("baseline", "metadata", "labels", "pod-security.kubernetes.io/enforce")
    yield "of another name", _set("another", "metadata", "name")


def _account(_: Document) -> Iterator[tuple[str, Change]]:
    yield "hands out tokens", _pop("automountServiceAccountToken")


def _role(document: Document) -> Iterator[tuple[str, Change]]:
    for number, _ in enumerate(document["rules"]):
        yield f"{number}: every verb", _set(["*"], "rules", number, "verbs")
        yield f"{number}: secrets", _set(["secrets"], "rules", number, "resources")
        yield f"{number}: a shell", _set(["pods/exec"], "rules", number, "resources")
    yield "of the cluster", _set("ClusterRole", "kind")


def _binding(_: Document) -> Iterator[tuple[str, Change]]:
    yield "a role of the cluster", _set("ClusterRole", "roleRef", "kind")
    yield "another role", _set("another", "roleRef", "name")
    yield "a group", _set("Group", "subjects", 0, "kind")
    yield "another account", _set("another", "subjects", 0, "name")


def _configuration(_: Document) -> Iterator[tuple[str, Change]]:
    yield "a password", _set("x", "data", "REDIS_PASSWORD")
    yield "elsewhere", _pop("metadata", "namespace")


def _template(_: Document) -> Iterator[tuple[str, Change]]:
    yield "of no root", _pop("metadata", "annotations", "mlops-platform/runs")


OF_A_KIND: dict[str, Callable[[Document], Iterator[tuple[str, Change]]]] = {
    "Deployment": _long_running,
    "StatefulSet": _long_running,
    "Job": _job,
    "Service": _service,
    "EndpointSlice": _slice,
    "PodDisruptionBudget": _budget,
    "HorizontalPodAutoscaler": _scaler,
    "NetworkPolicy": _network,
    "Namespace": _namespace,
    "ServiceAccount": _account,
    "Role": _role,
    "RoleBinding": _binding,
    "ConfigMap": _configuration,
    "PodTemplate": _template,
}
