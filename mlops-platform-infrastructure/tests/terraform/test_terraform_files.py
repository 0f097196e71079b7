"""The Terraform files parse, keep the policy, and the policy sees each control that is taken away."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hcl_files import TERRAFORM, files, module, parse, resources
from terraform_policy import ENVIRONMENTS, PURE, Tree, findings

FOLDERS = sorted(
    str(path.relative_to(TERRAFORM))
    for path in [*TERRAFORM.glob("modules/*"), *TERRAFORM.glob("environments/*"), TERRAFORM / "offline_plan"]
)


@pytest.fixture(scope="module")
def tree() -> Tree:
    return {folder: module(TERRAFORM / folder) for folder in FOLDERS}


def test_the_documented_modules_and_environments_are_there():
    for name in ("compute_instance", "postgresql_server", "redis_cluster", "airflow_on_docker"):
        assert (TERRAFORM / "modules" / name / "main.tf").is_file()
    for name in ("dev", "prod"):
        assert (TERRAFORM / "environments" / name / "main.tf").is_file()
        assert (TERRAFORM / "environments" / name / "variables.tf").is_file()
        link = TERRAFORM / "environments" / name / "backend_config.tf"
        assert link.resolve() == TERRAFORM / "backend_config.tf"
    assert set(FOLDERS) >= PURE | ENVIRONMENTS


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(TERRAFORM)))
def test_every_file_parses(path):
    assert parse(path) or path.name == ".terraform.lock.hcl"


def test_the_files_keep_the_policy(tree: Tree):
    assert findings(tree) == []


def test_each_scanner_finding_that_is_let_pass_has_a_reason():
    skips = [
        line
        for path in files()
        for line in path.read_text().splitlines()
        if re.search(r"(checkov|tfsec|trivy):(skip|ignore)", line)
    ]
    assert len(skips) == 3
    assert all(len(re.sub(r"^.*?:skip=\w+:", "", line).split()) >= 5 for line in skips)


def test_every_variable_is_used():
    for folder in FOLDERS:
        content = module(TERRAFORM / folder)
        text = "\n".join(path.read_text() for path in (TERRAFORM / folder).glob("*.tf"))
        declared = {name for block in content.get("variable", []) for name in block}
        assert {name for name in declared if f"var.{name}" not in text} == set(), folder


def test_a_module_is_given_each_variable_that_has_no_default_and_no_other(tree: Tree):
    for folder, content in tree.items():
        for block in content.get("module", []):
            for name, call in block.items():
                target = (TERRAFORM / folder / call["source"]).resolve()
                variables = {k: v for b in module(target).get("variable", []) for k, v in b.items()}
                given = call.keys() - {"source", "for_each", "count", "depends_on", "providers", "version"}
                required = {k for k, v in variables.items() if "default" not in v}
                assert required <= given <= variables.keys(), f"{folder}: module {name}"


def test_what_is_asked_of_a_module_is_one_of_its_outputs(tree: Tree):
    for folder, content in tree.items():
        calls = {name: call["source"] for block in content.get("module", []) for name, call in block.items()}
        text = "\n".join(path.read_text() for path in (TERRAFORM / folder).glob("*.tf"))
        for name, output in re.findall(r"\bmodule\.(\w+)(?:\[[^\]]+\])?\.(\w+)", text):
            outputs = module((TERRAFORM / folder / calls[name]).resolve()).get("output", [])
            assert output in {key for block in outputs for key in block}, f"{folder}: module.{name}.{output}"


Change = Callable[[Any], Any]


Mutation = tuple[str, str, Change]


def mutations(tree: Tree) -> list[Mutation]:
    """Every argument that a check asks for, taken away or turned around; blocks and companions gone."""
    return [*_without_a_control(tree), *_out_of_place(tree), *_by_hand()]


def _without_a_control(tree: Tree) -> Iterator[Mutation]:
    for folder, content in tree.items():
        for name in resources(content):
            for path in CONTROLS.get(name.partition(".")[0], []):
                yield folder, f"{name} without {'.'.join(path)}", _without(name, path)
            if name.startswith(("aws_s3_bucket_", "aws_dlm_lifecycle_policy")):
                yield folder, f"no {name}", _gone(name)
            yield folder, f"{name} with a provisioner", _with(name, "provisioner", [{"local-exec": {}}])


def _out_of_place(tree: Tree) -> Iterator[Mutation]:
    for folder in tree:
        if folder not in PURE:
            yield folder, "a provider of any version", _any_version
        yield folder, "any Terraform", lambda content: content.update(terraform=_unversioned(content))
    for folder in PURE:
        yield (
            folder,
            "a resource",
            lambda content: content.setdefault("resource", []).append({"aws_instance": {"x": {}}}),
        )
    for folder in ENVIRONMENTS:
        yield folder, "state not encrypted", lambda content: _backend(content).pop("encrypt")
        yield folder, "state not locked", lambda content: _backend(content).pop("use_lockfile")
        yield folder, "state with a key", lambda content: _backend(content).update(access_key="x")
        yield (
            folder,
            "state kept here",
            lambda content: [b.pop("backend", None) for b in content["terraform"]],
        )
        yield folder, "somebody's module", lambda c: c["module"][0]["platform"].update(source="x/y/aws")


def _by_hand() -> Iterator[Mutation]:
    instance, postgres = "modules/compute_instance", "modules/postgresql_server"
    yield instance, "a public address", _with("aws_instance.this", "associate_public_ip_address", True)
    yield instance, "an SSH key", _with("aws_instance.this", "key_name", "k")
    for way in ("ingress", "egress"):
        rule = f"aws_vpc_security_group_{way}_rule.this"
        yield instance, f"{way} of the world", _with(rule, "cidr_ipv4", "0.0.0.0/0")
        yield instance, f"{way} of every port", _with(rule, "ip_protocol", "-1")
        yield instance, f"{way} beside the table", _with("aws_security_group.this", way, [{}])
    yield "modules/data_volume", "a disk torn off", _with("aws_volume_attachment.this", "force_detach", True)
    for action in ("*", "s3:*", "s3:DeleteObject"):
        text = f'${{jsonencode({{Statement = [{{Action = "{action}"}}]}})}}'
        yield postgres, f"a role that may {action}", _with("aws_iam_role_policy.backups", "policy", text)
    yield postgres, "plain connections", _with("aws_s3_bucket_policy.backups", "policy", "{}")
    yield postgres, "a secret", _with("aws_s3_bucket.backups", "tags", {"k": "AKIA" + "A" * 16})
    yield postgres, "an unexplained variable", lambda c: c["variable"][0]["server"].pop("description")
    yield postgres, "an unexplained output", lambda c: c["output"][0]["address"].pop("description")


CONTROLS: dict[str, list[tuple[str, ...]]] = {
    "aws_instance": [
        *((name,) for name in ("associate_public_ip_address", "ebs_optimized", "monitoring")),
        *((name,) for name in ("vpc_security_group_ids", "disable_api_termination")),
        ("metadata_options",),
        ("metadata_options", "http_tokens"),
        ("metadata_options", "http_put_response_hop_limit"),
        ("root_block_device",),
        ("root_block_device", "encrypted"),
        ("root_block_device", "kms_key_id"),
    ],
    "aws_ebs_volume": [("encrypted",), ("kms_key_id",), ("final_snapshot",), ("lifecycle",)],
    "aws_volume_attachment": [("stop_instance_before_detaching",)],
    "aws_security_group": [("description",)],
    **{
        f"aws_vpc_security_group_{way}_rule": [
            (name,)
            for name in ("ip_protocol", "from_port", "to_port", "cidr_ipv4", "description", "for_each")
        ]
        for way in ("ingress", "egress")
    },
    "aws_s3_bucket": [("object_lock_enabled",), ("lifecycle", "prevent_destroy")],
    "aws_s3_bucket_versioning": [("versioning_configuration", "status")],
    "aws_s3_bucket_object_lock_configuration": [
        ("rule", "default_retention", "mode"),
        ("rule", "default_retention", "days"),
    ],
    "aws_s3_bucket_server_side_encryption_configuration": [
        ("rule", "apply_server_side_encryption_by_default", "sse_algorithm"),
        ("rule", "apply_server_side_encryption_by_default", "kms_master_key_id"),
    ],
    "aws_s3_bucket_public_access_block": [
        (name,)
        for name in (
            "block_public_acls",
            "block_public_policy",
            "ignore_public_acls",
            "restrict_public_buckets",
        )
    ],
    "aws_dlm_lifecycle_policy": [("state",), ("policy_details", "schedule", "retain_rule")],
}


def _body(content: dict[str, Any], name: str) -> Any:
    return resources(content)[name]


def _without(name: str, path: tuple[str, ...]) -> Change:
    def change(content: Any) -> None:
        body = _body(content, name)
        for step in path[:-1]:
            body = body[step][0]
        del body[path[-1]]

    return change


def _with(name: str, argument: str, value: Any) -> Change:
    return lambda content: _body(content, name).update({argument: value})


def _gone(name: str) -> Change:
    kind, _, label = name.partition(".")
    return lambda content: [block.get(kind, {}).pop(label, None) for block in content["resource"]]


def _backend(content: Any) -> Any:
    return next(block["backend"][0]["s3"] for block in content["terraform"] if "backend" in block)


def _any_version(content: Any) -> None:
    for block in content["terraform"]:
        for providers in block.get("required_providers", []):
            providers["aws"].pop("version")


def _unversioned(content: Any) -> Any:
    return [{k: v for k, v in block.items() if k != "required_version"} for block in content["terraform"]]


def test_the_policy_sees_every_control_that_is_taken_away(tree: Tree):
    survived = []
    made = mutations(tree)
    for folder, name, change in made:
        changed = dict(tree)
        changed[folder] = copy.deepcopy(tree[folder])
        change(changed[folder])
        assert changed[folder] != tree[folder], f"{folder}: {name} changes nothing"
        if not findings(changed):
            survived.append(f"{folder}: {name}")
    print(f"terraform: {len(made)} mutations, {len(made) - len(survived)} seen")
    assert survived == []
    assert len(made) >= 100
