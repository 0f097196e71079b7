"""Every overlay builds, fits Kubernetes' schemas, keeps the policy; the policy sees what goes."""

from __future__ import annotations

import copy
import functools
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from kubernetes_validate import utils as schemas
from manifest_mutations import mutations
from manifest_policy import findings, pods
from overlay_builds import DEPLOYMENTS, OVERLAYS, ROOT

from server_tools import kubernetes_secrets, secrets

Build = Callable[[str], list[dict[str, Any]]]
# The oldest version that the services are made for, and the newest whose schemas are at hand.
VERSIONS = ("1.33", "1.37")
PRODUCTION = [overlay for overlay in OVERLAYS if overlay.endswith("/prod")]


@pytest.fixture(scope="module", autouse=True)
def schemas_are_read_once():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schemas, "schema_contents", functools.cache(schemas.schema_contents))
        yield


def key(document: dict[str, Any]) -> str:
    return f"{document['kind']}/{document['metadata'].get('namespace', '')}/{document['metadata']['name']}"


def test_each_part_has_an_overlay_for_development_and_for_production():
    parts = ("airflow_cluster", "mlflow_on_k8s", "model_service_templates", "monitoring_on_k8s")
    assert [f"{part}/overlays/{size}" for part in parts for size in ("dev", "prod")] == OVERLAYS


@pytest.mark.parametrize(
    "path", sorted(DEPLOYMENTS.rglob("*.y*ml")), ids=lambda path: str(path.relative_to(DEPLOYMENTS))
)
def test_every_file_parses_and_leaves_versions_to_the_overlays(path: Path):
    """Needs no kubectl: what is looked at are the files themselves."""
    text = path.read_text()
    documents = [document for document in yaml.safe_load_all(text) if document]
    assert documents
    assert re.findall(r"^\s*image: \S+:\S+$", text, re.MULTILINE) == []
    if path.name == "kustomization.yaml":
        resources = [r for d in documents for r in [*d.get("resources", []), *d.get("components", [])]]
        assert [name for name in resources if not (path.parent / name).exists()] == []


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_overlays_keep_the_policy(overlay: str, build: Build):
    documents = build(overlay)
    assert findings(documents, production=overlay in PRODUCTION) == []
    assert [name for name, count in Counter(map(key, documents)).items() if count > 1] == []


@pytest.mark.parametrize("version", VERSIONS)
def test_every_resource_fits_its_schema(version: str, build: Build):
    documents = {json.dumps(d, sort_keys=True): d for overlay in OVERLAYS for d in build(overlay)}
    assert len(documents) > 150
    for document in documents.values():
        kubernetes_validate.validate(document, version, strict=True)


def test_the_schemas_see_a_field_that_does_not_exist(build: Build):
    document = next(d for d in build("mlflow_on_k8s/overlays/prod") if d["kind"] == "Deployment")
    document["spec"]["template"]["spec"]["containers"][0]["readinesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(document, VERSIONS[0], strict=True)


@pytest.mark.parametrize("overlay", PRODUCTION)
def test_the_policy_sees_every_control_that_is_taken_away(overlay: str, build: Build):
    documents = build(overlay)
    survived, tried = [], 0
    for name, position, change in mutations(documents):
        changed = list(documents)
        if change is None:
            del changed[position]
        else:
            changed[position] = copy.deepcopy(documents[position])
            change(changed[position])
        tried += 1
        if not findings(changed, production=True):
            survived.append(name)
    print(f"{overlay}: {tried} mutations, {tried - len(survived)} seen")
    assert survived == []
    assert tried > 100


def test_the_policy_is_softer_on_a_small_cluster_in_two_things_only(build: Build):
    """One replica and the tag of a working copy are for development alone."""
    documents = build("mlflow_on_k8s/overlays/dev")
    assert findings(documents, production=False) == []
    strict = findings(documents, production=True)
    assert {finding.partition(": ")[2].rpartition(": ")[2] for finding in strict} == {
        "the image mlops/mlflow-server:dev has no fixed version",
        "there is only one of it",
    }


def test_images_of_other_projects_are_those_of_the_servers(build: Build):
    pinned = set(
        re.findall(
            r"^\w+_IMAGE=(\S+)$", (ROOT / "docker_compose_setups/versions.env").read_text(), re.MULTILINE
        )
    )
    used = {
        container["image"]
        for overlay in PRODUCTION
        for _, template in pods(build(overlay))
        for container in [*template["spec"].get("initContainers", []), *template["spec"]["containers"]]
    }
    assert {image for image in used if not image.startswith("mlops/")} <= pinned
    assert len(used - pinned) > 5


def test_every_secret_that_a_pod_asks_for_can_be_made(build: Build):
    asked: set[tuple[str, str]] = set()
    for overlay in PRODUCTION:
        for document, template in pods(build(overlay)):
            text = json.dumps(template)
            named = re.findall(r'"secretName": "([^"]+)"', text)
            named += re.findall(r'"(?:secretRef|secret)": \{"name": "([^"]+)"', text)
            named += re.findall(r'"secretKeyRef": \{"key": "[^"]+", "name": "([^"]+)"', text)
            asked |= {(document["metadata"]["namespace"], name) for name in named}
    made = {(space, name) for space, each in kubernetes_secrets.SECRETS.items() for name in each}
    assert asked == made


def test_every_file_that_a_secret_comes_from_is_generated():
    files = {
        file
        for each in kubernetes_secrets.SECRETS.values()
        for keys in each.values()
        for file in keys.values()
    }
    assert files <= set(secrets.NAMES)


def test_names_of_other_namespaces_services_exist(build: Build):
    """A name such as mlflow.mlops-mlflow.svc.cluster.local is a Service of that overlay, with that port."""
    built = {overlay: build(overlay) for overlay in PRODUCTION}
    services = {
        (d["metadata"]["name"], d["metadata"]["namespace"]): {p["port"] for p in d["spec"]["ports"]}
        for documents in built.values()
        for d in documents
        if d["kind"] == "Service"
    }
    text = "\n".join(json.dumps(d) for documents in built.values() for d in documents)
    named = set(re.findall(r"([\w-]+)\.(mlops-\w+)\.svc\.cluster\.local", text))
    assert {("mlflow", "mlops-mlflow"), ("fraud-detection-api-pods", "mlops-services")} <= named
    assert named <= services.keys()
    for name, namespace, port in re.findall(r"([\w-]+)\.(mlops-\w+)\.svc\.cluster\.local:(\d+)", text):
        assert int(port) in services[name, namespace]


def test_data_servers_differ_by_their_addresses_alone():
    texts = {
        size: (DEPLOYMENTS / f"components/data_servers/{size}/data_servers.yaml").read_text()
        for size in ("dev", "prod")
    }
    without = {size: re.sub(r"10\.\d+\.1\.", "", text) for size, text in texts.items()}
    assert without["dev"] == without["prod"]
    assert texts["dev"] != texts["prod"]


def test_the_monitoring_knows_every_service_and_its_port(build: Build):
    scraped = yaml.safe_load((DEPLOYMENTS / "monitoring_on_k8s/base/config/prometheus.yml").read_text())
    asked = {
        (entry["names"][0].partition(".")[0], entry["port"])
        for job in scraped["scrape_configs"]
        for entry in job.get("dns_sd_configs", [])
        if "mlops-services" in entry["names"][0]
    }
    headless = {
        (d["metadata"]["name"], d["spec"]["ports"][0]["port"])
        for d in build("model_service_templates/overlays/prod")
        if d["kind"] == "Service" and d["spec"].get("clusterIP") == "None" and "selector" in d["spec"]
    }
    assert asked == headless


def test_each_task_has_a_template_with_the_image_that_runs_it_on_servers(build: Build):
    runner = (ROOT.parent / "mlops-orchestration-pipelines/plugins/runners/container.py").read_text()
    on_servers = dict(re.findall(r'^    "([\w/-]+)": "(mlops/[\w-]+)",$', runner, re.MULTILINE))
    templates = {
        d["metadata"]["annotations"]["mlops-platform/runs"]: d["template"]["spec"]["containers"][0]["image"]
        for d in build("airflow_cluster/overlays/prod")
        if d["kind"] == "PodTemplate"
    }
    assert {place: image.partition(":")[0] for place, image in templates.items()} == on_servers


def test_what_tasks_arguments_name_is_the_same_in_the_scheduler_and_in_the_task(build: Build):
    dags = "\n".join(
        p.read_text() for p in (ROOT.parent / "mlops-orchestration-pipelines/dags").rglob("*.py")
    )
    named = set(re.findall(r"\$\{([A-Z_]+)\}", dags))
    settings = {
        d["metadata"]["namespace"]: d["data"]
        for d in build("airflow_cluster/overlays/prod")
        if d["kind"] == "ConfigMap"
    }
    assert "DATA_DIR" in named
    for name in named:
        assert settings["mlops-airflow"][name] == settings["mlops-tasks"][name]


def test_the_scheduler_may_do_what_its_runner_asks_and_no_more(build: Build):
    runner = (ROOT.parent / "mlops-orchestration-pipelines/plugins/runners/kubernetes_job.py").read_text()
    calls = set(re.findall(r'"(GET|POST|DELETE)",\s*f?"(core|batch)/(\w+)', runner))
    calls |= {("GET", "core", "pods/log")} if "/log" in runner else set()
    verbs = {"GET": "list", "POST": "create", "DELETE": "delete"}
    asked = {(group, resource, verbs[method]) for method, group, resource in calls if resource != "pods/log"}
    asked.add(("core", "pods/log", "get"))
    role = next(d for d in build("airflow_cluster/overlays/prod") if d["kind"] == "Role")
    allowed = {
        (group or "core", resource, verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert allowed == asked
