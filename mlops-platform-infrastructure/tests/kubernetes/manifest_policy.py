"""What every manifest built for a cluster must say; pure, one finding a line.

A control that can't be kept is waived by the annotation `mlops-platform/waiver.<control>` with its reason.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

Document = dict[str, Any]

LONG_RUNNING = ("Deployment", "StatefulSet")
WORKLOADS = (*LONG_RUNNING, "Job")
CLUSTER_WIDE = {"Namespace", "ClusterRole", "ClusterRoleBinding"}
NAMED = re.compile(r"[\w./-]+:(?!latest$)[\w.-]+(@sha256:[0-9a-f]{64})?$")
FIXED = re.compile(r"[\w./-]+:v?\d+\.\d+\.\d+([\w.-]*)?(@sha256:[0-9a-f]{64})?$")
SECRET = re.compile(r"PASSWORD|SECRET|TOKEN|ACCESS_KEY|API_KEY|CONN$|FERNET", re.IGNORECASE)
POINTS_AT_A_FILE = re.compile(r"(_FILE|__FILE|_DIR)$")
QUANTITY = re.compile(r"^\d+(\.\d+)?(m|Mi|Gi|Ki)?$")


def findings(documents: list[Document], production: bool) -> list[str]:
    """Return what is missing or contradicts itself in the documents of one overlay.

    `production` asks for fixed versions and for more than one of what serves.
    """
    index = _Index(documents)
    found: list[str] = []
    for document in documents:
        where = f"{document['kind']} {document['metadata']['name']}"
        found += [f"{where}: {finding}" for finding in _document(document, index, production)]
    return [*found, *_namespaces(documents)]


def pods(documents: list[Document]) -> Iterator[tuple[Document, Document]]:
    """Yield each document that makes pods with its pod template."""
    for document in documents:
        if document["kind"] in WORKLOADS:
            yield document, document["spec"]["template"]
        elif document["kind"] == "PodTemplate":
            yield document, document["template"]


class _Index:
    def __init__(self, documents: list[Document]) -> None:
        self.documents = documents

    def of(self, kind: str, namespace: str) -> list[Document]:
        return [
            d for d in self.documents if d["kind"] == kind and d["metadata"].get("namespace", "") == namespace
        ]

    def named(self, kind: str, namespace: str, name: str) -> Document | None:
        return next((d for d in self.of(kind, namespace) if d["metadata"]["name"] == name), None)


def _document(document: Document, index: _Index, production: bool) -> Iterator[str]:
    kind, namespace = document["kind"], document["metadata"].get("namespace", "")
    if kind not in CLUSTER_WIDE and not namespace:
        yield "stands in no namespace"
    if kind in WORKLOADS:
        template = document["spec"]["template"]
        yield from _pod(template, namespace, index, production, kind in LONG_RUNNING)
    if kind == "PodTemplate":
        yield from _pod(document["template"], namespace, index, production, False)
        if not document["metadata"].get("annotations", {}).get("mlops-platform/runs"):
            yield "does not say which root's commands it runs"
    check = {
        "Deployment": _long_running,
        "StatefulSet": _long_running,
        "Job": _job,
        "Service": _service,
        "PodDisruptionBudget": _budget,
        "HorizontalPodAutoscaler": _scaler,
        "NetworkPolicy": _network,
        "Role": _role,
        "RoleBinding": _binding,
        "ServiceAccount": _account,
        "ConfigMap": _configuration,
    }.get(kind)
    if check is not None:
        yield from check(document, index, production)
    if kind in {"ClusterRole", "ClusterRoleBinding", "Secret"}:
        yield "must not stand in a manifest"


# Pods


def _pod(
    template: Document, namespace: str, index: _Index, production: bool, long_running: bool
) -> Iterator[str]:
    pod, metadata = template["spec"], template["metadata"]
    context = pod.get("securityContext", {})
    if context.get("runAsNonRoot") is not True:
        yield "may run as root"
    yield from (
        f"{name} is {context.get(name)}"
        for name in ("runAsUser", "runAsGroup", "fsGroup")
        if not context.get(name)
    )
    if context.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield "seccompProfile is not RuntimeDefault"
    yield from (f"{name}: true" for name in ("hostNetwork", "hostPID", "hostIPC") if pod.get(name))
    yield from _token(template, namespace, index)
    if not pod.get("terminationGracePeriodSeconds") and long_running:
        yield "has no time to end"
    for volume in pod.get("volumes", []):
        yield from _volume(volume, namespace, index)
    yield from _mounts(pod)
    for container in [*pod.get("initContainers", []), *pod["containers"]]:
        named = f"container {container['name']}"
        yield from (f"{named}: {f}" for f in _container(container, namespace, index, production))
    if long_running:
        for container in pod["containers"]:
            yield from (
                f"container {container['name']}: no {probe}"
                for probe in ("startupProbe", "readinessProbe", "livenessProbe")
                if not container.get(probe)
            )
    for label in metadata.get("labels", {}):
        if label.startswith("mlops-platform/reach-") and not any(
            p["spec"]["podSelector"].get("matchLabels") == {label: "true"}
            for p in index.of("NetworkPolicy", namespace)
        ):
            yield f"no NetworkPolicy gives what {label} asks for"
    yield from _waivers(metadata)


def _token(template: Document, namespace: str, index: _Index) -> Iterator[str]:
    pod = template["spec"]
    if pod.get("automountServiceAccountToken") is not False:
        yield "mounts the token of its service account"
    account = pod.get("serviceAccountName", "default")
    if account == "default":
        yield "has no service account of its own"
    elif index.named("ServiceAccount", namespace, account) is None:
        yield f"its service account {account} does not exist"
    projected = [s for v in pod.get("volumes", []) for s in v.get("projected", {}).get("sources", [])]
    tokens = [s["serviceAccountToken"] for s in projected if "serviceAccountToken" in s]
    if tokens and not _waived(template["metadata"], "token"):
        yield "holds a token, and no waiver says why"
    if any(token.get("expirationSeconds", 3600) > 3600 for token in tokens):
        yield "its token lives longer than an hour"


def _waived(metadata: Document, control: str) -> bool:
    return bool(metadata.get("annotations", {}).get(f"mlops-platform/waiver.{control}", "").strip())


def _waivers(metadata: Document) -> Iterator[str]:
    for name, reason in metadata.get("annotations", {}).items():
        if name.startswith("mlops-platform/waiver."):
            if name.rpartition(".")[2] not in {"token", "single", "anywhere"}:
                yield f"{name}: there is no such control"
            if len(reason.split()) < 5:
                yield f"{name}: gives no reason"


def _volume(volume: Document, namespace: str, index: _Index) -> Iterator[str]:
    name = volume["name"]
    if "hostPath" in volume:
        yield f"volume {name}: is a folder of the node"
    if "emptyDir" in volume and not volume["emptyDir"].get("sizeLimit"):
        yield f"volume {name}: may fill the node"
    for kind in ("secret", "projected"):
        if kind in volume and volume[kind].get("defaultMode", 0o644) & 0o7:
            yield f"volume {name}: everybody may read it"
    claim = volume.get("persistentVolumeClaim", {}).get("claimName")
    if claim and index.named("PersistentVolumeClaim", namespace, claim) is None:
        yield f"volume {name}: there is no claim {claim}"
    config = volume.get("configMap", {}).get("name")
    if config and index.named("ConfigMap", namespace, config) is None:
        yield f"volume {name}: there is no ConfigMap {config}"


def _mounts(pod: Document) -> Iterator[str]:
    private = {v["name"] for v in pod.get("volumes", []) if {"secret", "projected", "configMap"} & v.keys()}
    for container in [*pod.get("initContainers", []), *pod["containers"]]:
        for mount in container.get("volumeMounts", []):
            if mount["name"] in private and mount.get("readOnly") is not True:
                yield f"container {container['name']}: {mount['name']} is mounted writable"


def _container(container: Document, namespace: str, index: _Index, production: bool) -> Iterator[str]:
    context = container.get("securityContext", {})
    wanted = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "privileged": False}
    yield from (f"{n} is {context.get(n)}" for n, value in wanted.items() if context.get(n) is not value)
    capabilities = context.get("capabilities", {})
    if capabilities.get("drop") != ["ALL"] or capabilities.get("add"):
        yield "keeps capabilities"
    resources = container.get("resources", {})
    for group in ("requests", "limits"):
        for what in ("cpu", "memory"):
            if not QUANTITY.match(str(resources.get(group, {}).get(what, ""))):
                yield f"no {group} of {what}"
    if not (FIXED if production else NAMED).match(container["image"]):
        yield f"the image {container['image']} has no fixed version"
    if container.get("imagePullPolicy") != "IfNotPresent":
        yield "asks the registry at every start"
    yield from (
        f"port {p['containerPort']} is the node's" for p in container.get("ports", []) if "hostPort" in p
    )
    for variable in container.get("env", []):
        name = variable["name"]
        if "value" in variable and SECRET.search(name) and not POINTS_AT_A_FILE.search(name):
            yield f"{name} stands in the manifest"
    for source in container.get("envFrom", []):
        config = source.get("configMapRef", {}).get("name")
        if config and index.named("ConfigMap", namespace, config) is None:
            yield f"there is no ConfigMap {config}"


# Workloads


def _long_running(document: Document, index: _Index, production: bool) -> Iterator[str]:
    spec, namespace = document["spec"], document["metadata"]["namespace"]
    template = spec["template"]
    labels = template["metadata"]["labels"]
    if not _selects(spec["selector"].get("matchLabels"), labels):
        yield "selects other pods than its own"
    spread = template["spec"].get("topologySpreadConstraints", [])
    if not any(_selects(s.get("labelSelector", {}).get("matchLabels"), labels) for s in spread):
        yield "its pods are not spread over nodes"
    budgets = [b for b in index.of("PodDisruptionBudget", namespace) if _selects(_match_labels(b), labels)]
    if len(budgets) != 1:
        yield f"{len(budgets)} PodDisruptionBudgets select its pods"
    policies = index.of("NetworkPolicy", namespace)
    mine = [p for p in policies if _selects(p["spec"]["podSelector"].get("matchLabels"), labels)]
    if any(c.get("ports") for c in template["spec"]["containers"]) and not any(
        "Ingress" in p["spec"]["policyTypes"] and p["spec"].get("ingress") for p in mine
    ):
        yield "serves a port that no NetworkPolicy opens"
    scaler = next(
        (
            s
            for s in index.of("HorizontalPodAutoscaler", namespace)
            if s["spec"]["scaleTargetRef"]["name"] == document["metadata"]["name"]
        ),
        None,
    )
    if scaler is not None and "replicas" in spec:
        yield "sets the number of replicas that its autoscaler decides"
    replicas = scaler["spec"].get("minReplicas", 1) if scaler else spec.get("replicas", 1)
    if production and replicas < 2 and not _waived(template["metadata"], "single"):
        yield "there is only one of it"
    if document["kind"] == "StatefulSet":
        headless = index.named("Service", namespace, spec.get("serviceName", ""))
        if headless is None or headless["spec"].get("clusterIP") != "None":
            yield "serviceName is no headless service"
        if not spec.get("volumeClaimTemplates"):
            yield "keeps nothing, and is a StatefulSet"


def _job(document: Document, _index: _Index, _production: bool) -> Iterator[str]:
    spec = document["spec"]
    for name in ("backoffLimit", "activeDeadlineSeconds", "ttlSecondsAfterFinished"):
        if spec.get(name) is None:
            yield f"no {name}"
    if spec["template"]["spec"].get("restartPolicy") != "Never":
        yield "hides its failures by restarting"


def _selects(selector: Document | None, labels: Document) -> bool:
    return bool(selector) and selector.items() <= labels.items()  # type: ignore[union-attr]


def _match_labels(document: Document) -> Document | None:
    labels: Document | None = document["spec"].get("selector", {}).get("matchLabels")
    return labels


def _service(document: Document, index: _Index, _production: bool) -> Iterator[str]:
    spec, namespace = document["spec"], document["metadata"]["namespace"]
    if spec.get("type", "ClusterIP") != "ClusterIP":
        yield f"is open beyond the cluster: {spec['type']}"
    name = document["metadata"]["name"]
    if "selector" not in spec:
        slices = index.of("EndpointSlice", namespace)
        if not any(s["metadata"]["labels"].get("kubernetes.io/service-name") == name for s in slices):
            yield "leads nowhere"
        return
    chosen = [
        template["spec"]
        for workload, template in pods(index.documents)
        if workload["metadata"].get("namespace") == namespace
        and _selects(spec["selector"], template["metadata"].get("labels", {}))
    ]
    ports = {p["name"] for pod in chosen for c in pod["containers"] for p in c.get("ports", [])}
    if not chosen:
        yield "selects no pod"
    yield from (
        f"no container has a port {p['targetPort']}" for p in spec["ports"] if p["targetPort"] not in ports
    )


def _budget(document: Document, index: _Index, _production: bool) -> Iterator[str]:
    spec, namespace = document["spec"], document["metadata"]["namespace"]
    if spec.get("maxUnavailable") != 1 and not spec.get("minAvailable"):
        yield "allows that no pod is left, or that no node is emptied"
    if not any(
        w["metadata"].get("namespace") == namespace
        and _selects(_match_labels(document), t["metadata"]["labels"])
        for w, t in pods(index.documents)
        if w["kind"] in LONG_RUNNING
    ):
        yield "protects nothing"


def _scaler(document: Document, index: _Index, _production: bool) -> Iterator[str]:
    spec, target = document["spec"], document["spec"]["scaleTargetRef"]
    if index.named(target["kind"], document["metadata"]["namespace"], target["name"]) is None:
        yield "scales what does not exist"
    if spec.get("minReplicas", 1) < 2 or spec["maxReplicas"] < spec.get("minReplicas", 1):
        yield "goes below two"
    if not spec.get("metrics"):
        yield "scales by no metric"


# Who may reach whom, and who may do what


def _network(document: Document, _index: _Index, _production: bool) -> Iterator[str]:
    spec = document["spec"]
    for direction, end in (("Ingress", "from"), ("Egress", "to")):
        rules = spec.get(direction.lower(), [])
        if rules and direction not in spec.get("policyTypes", []):
            yield f"its {direction.lower()} rules do not hold"
        for rule in rules:
            if not rule.get("ports"):
                yield f"an {direction.lower()} rule opens every port"
            peers = rule.get(end, [])
            encrypted = {p.get("port") for p in rule.get("ports", [])} <= {443, 6443}
            waived = direction == "Egress" and encrypted and _waived(document["metadata"], "anywhere")
            if not peers and not waived:
                yield f"an {direction.lower()} rule is for everybody"
            yield from _peers(peers)
    yield from _waivers(document["metadata"])


def _peers(peers: list[Document]) -> Iterator[str]:
    for peer in peers:
        if "ipBlock" in peer and not peer["ipBlock"]["cidr"].endswith("/32"):
            yield f"opens a whole network: {peer['ipBlock']['cidr']}"
        if any(
            not (peer[kind].get("matchLabels") or peer[kind].get("matchExpressions"))
            for kind in ("namespaceSelector", "podSelector")
            if kind in peer
        ):
            yield "has a peer that is everybody"


def _namespaces(documents: list[Document]) -> Iterator[str]:
    spaces = {d["metadata"]["name"]: d for d in documents if d["kind"] == "Namespace"}
    used = {d["metadata"].get("namespace", "") for d in documents if d["kind"] not in CLUSTER_WIDE}
    for name in sorted(used - spaces.keys()):
        yield f"Namespace {name}: is used and not declared"
    for name, space in spaces.items():
        labels = space["metadata"].get("labels", {})
        if labels.get("pod-security.kubernetes.io/enforce") != "restricted":
            yield f"Namespace {name}: does not enforce the restricted standard"
        inside = [d for d in documents if d["metadata"].get("namespace") == name]
        denies = [
            d["spec"]
            for d in inside
            if d["kind"] == "NetworkPolicy"
            and not d["spec"]["podSelector"]
            and set(d["spec"]["policyTypes"]) == {"Ingress", "Egress"}
            and not d["spec"].get("ingress")
            and not d["spec"].get("egress")
        ]
        if not denies:
            yield f"Namespace {name}: what no policy names is open"
        default = [d for d in inside if d["kind"] == "ServiceAccount" and d["metadata"]["name"] == "default"]
        if not default:
            yield f"Namespace {name}: the default service account hands out tokens"


def _account(document: Document, _index: _Index, _production: bool) -> Iterator[str]:
    if document.get("automountServiceAccountToken") is not False:
        yield "hands out tokens"


def _role(document: Document, _index: _Index, _production: bool) -> Iterator[str]:
    for rule in document["rules"]:
        if "*" in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]:
            yield "allows everything of some kind"
        if {"secrets", "pods/exec", "pods/attach", "roles", "rolebindings", "serviceaccounts/token"} & set(
            rule["resources"]
        ):
            yield "reaches secrets, shells or rights"


def _binding(document: Document, index: _Index, _production: bool) -> Iterator[str]:
    if document["roleRef"]["kind"] != "Role":
        yield "binds a role of the whole cluster"
    namespace = document["metadata"]["namespace"]
    if index.named("Role", namespace, document["roleRef"]["name"]) is None:
        yield "binds a role that does not exist"
    for subject in document["subjects"]:
        if subject["kind"] != "ServiceAccount":
            yield f"binds a {subject['kind']}"
        elif index.named("ServiceAccount", subject.get("namespace", namespace), subject["name"]) is None:
            yield f"binds {subject['name']}, which does not exist"


def _configuration(document: Document, _index: _Index, _production: bool) -> Iterator[str]:
    for name, value in document.get("data", {}).items():
        if SECRET.search(name) and not POINTS_AT_A_FILE.search(name) and value:
            yield f"{name} stands in the manifest"
