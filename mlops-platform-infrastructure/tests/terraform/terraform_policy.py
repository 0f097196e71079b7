"""What the Terraform files must say; pure, over parsed HCL, one finding a line."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

Body = dict[str, Any]
# Folder (below terraform/) -> its blocks by kind.
Tree = dict[str, dict[str, Any]]

PINNED = re.compile(r"~> \d+\.\d+")
PURE = {"modules/platform_plan", "modules/user_data", "modules/airflow_settings", "offline_plan"}
ENVIRONMENTS = {"environments/dev", "environments/prod"}
LITERAL_SECRET = re.compile(
    r"AKIA[0-9A-Z]{16}|-----BEGIN|(password|secret|token)\s*=\s*\\?\"[^\"$]", re.IGNORECASE
)


def findings(tree: Tree) -> list[str]:
    """Return what is missing or too open, over all folders."""
    found: list[str] = []
    for folder, content in tree.items():
        found += [f"{folder}: {finding}" for finding in _folder(folder, content)]
        for name, body in _resources(content).items():
            check = CHECKS.get(name.partition(".")[0])
            found += [f"{folder}: {name}: {f}" for f in _any_resource(body)]
            if check is not None:
                found += [f"{folder}: {name}: {f}" for f in check(body)]
        found += [f"{folder}: {f}" for f in _bucket_companions(_resources(content))]
    return found


def _resources(content: dict[str, Any]) -> dict[str, Body]:
    return {
        f"{name}.{label}": body
        for block in content.get("resource", [])
        for name, labelled in block.items()
        for label, body in labelled.items()
    }


def _folder(folder: str, content: dict[str, Any]) -> Iterator[str]:
    settings = content.get("terraform", [])
    if not any(block.get("required_version") for block in settings):
        yield "says no version of Terraform"
    providers = [p for block in settings for p in block.get("required_providers", [])]
    if folder in PURE:
        if providers or content.get("provider") or content.get("resource") or content.get("data"):
            yield "needs a provider, and is there to need none"
    elif (
        not all(re.fullmatch(r"~> \d+\.\d+", p["aws"].get("version", "")) for p in providers) or not providers
    ):
        yield "pins no version of its provider"
    if folder in ENVIRONMENTS:
        yield from _environment(content)
    elif content.get("provider") or any("backend" in block for block in settings):
        yield "a module has no provider and no state of its own"
    for block in content.get("variable", []):
        for name, body in block.items():
            if not body.get("description") or not body.get("type"):
                yield f"variable {name} has no description or no type"
    for block in content.get("output", []):
        yield from (
            f"output {name} has no description" for name, body in block.items() if not body.get("description")
        )
    for block in content.get("module", []):
        yield from (
            f"module {n} comes from elsewhere" for n, b in block.items() if not b["source"].startswith("../")
        )
    if LITERAL_SECRET.search(repr(content)):
        yield "holds a secret"


def _environment(content: dict[str, Any]) -> Iterator[str]:
    backends = [
        b["s3"] for block in content.get("terraform", []) for b in block.get("backend", []) if "s3" in b
    ]
    if len(backends) != 1:
        yield "keeps its state here"
        return
    if backends[0].get("encrypt") is not True:
        yield "its state is not encrypted"
    if backends[0].get("use_lockfile") is not True:
        yield "its state is not locked"
    if backends[0].keys() & {"access_key", "secret_key", "profile"}:
        yield "its state's credentials stand in the file"


def _any_resource(body: Body) -> Iterator[str]:
    if body.keys() & {"provisioner", "connection"}:
        yield "runs commands of its own"


def _block(body: Body, name: str) -> Body:
    found: Body = (body.get(name) or [{}])[0]
    return found


def _wrong(body: Body, wanted: dict[str, Any], where: str = "") -> Iterator[str]:
    for name, value in wanted.items():
        if body.get(name) != value:
            yield f"{where}{name} is {body.get(name)}, not {value}"


def _instance(body: Body) -> Iterator[str]:
    yield from _wrong(body, {"associate_public_ip_address": False, "ebs_optimized": True, "monitoring": True})
    yield from _wrong(
        _block(body, "metadata_options"), {"http_tokens": "required", "http_put_response_hop_limit": 1}
    )
    root = _block(body, "root_block_device")
    yield from _wrong(root, {"encrypted": True, "kms_key_id": "${var.kms_key_arn}"}, "root disk: ")
    if not body.get("vpc_security_group_ids"):
        yield "stands in the VPC's default security group"
    if "key_name" in body:
        yield "has an SSH key of the cloud"
    if body.get("disable_api_termination") != "${var.protected}":
        yield "can be ended by one call in production"


def _volume(body: Body) -> Iterator[str]:
    yield from _wrong(body, {"encrypted": True, "kms_key_id": "${var.kms_key_arn}", "final_snapshot": True})
    yield from _wrong(_block(body, "lifecycle"), {"prevent_destroy": True})


def _attachment(body: Body) -> Iterator[str]:
    yield from _wrong(body, {"stop_instance_before_detaching": True})
    if body.get("force_detach"):
        yield "is torn off"


def _security_group(body: Body) -> Iterator[str]:
    if body.keys() & {"ingress", "egress"}:
        yield "has rules beside the table"
    if not body.get("description"):
        yield "has no description"


def _rule(body: Body) -> Iterator[str]:
    """A rule is the table's: no address, no port of its own."""
    yield from _wrong(
        body,
        {
            "ip_protocol": "tcp",
            "from_port": "${each.value.port}",
            "to_port": "${each.value.port}",
            "cidr_ipv4": "${each.value.network}",
            "description": "${each.value.description}",
        },
    )
    if not str(body.get("for_each", "")).startswith("${var.server."):
        yield "is not of the table"


def _bucket(body: Body) -> Iterator[str]:
    yield from _wrong(body, {"object_lock_enabled": True})
    yield from _wrong(_block(body, "lifecycle"), {"prevent_destroy": True})


def _versioning(body: Body) -> Iterator[str]:
    yield from _wrong(_block(body, "versioning_configuration"), {"status": "Enabled"})


def _lock(body: Body) -> Iterator[str]:
    retention = _block(_block(body, "rule"), "default_retention")
    yield from _wrong(retention, {"mode": "COMPLIANCE", "days": "${var.backup_days.locked}"})


def _encryption(body: Body) -> Iterator[str]:
    default = _block(_block(body, "rule"), "apply_server_side_encryption_by_default")
    yield from _wrong(default, {"sse_algorithm": "aws:kms", "kms_master_key_id": "${var.kms_key_arn}"})


def _public_access(body: Body) -> Iterator[str]:
    names = ("block_public_acls", "block_public_policy", "ignore_public_acls", "restrict_public_buckets")
    yield from _wrong(body, dict.fromkeys(names, True))


def _bucket_policy(body: Body) -> Iterator[str]:
    policy = str(body.get("policy", ""))
    if "aws:SecureTransport" not in policy or '"Deny"' not in policy:
        yield "allows connections without encryption"


def _iam(body: Body) -> Iterator[str]:
    policy = f"{body.get('policy', '')} {body.get('assume_role_policy', '')}"
    if re.search(r'(Action|Resource)\s*=\s*\[?"\*"', policy) or re.search(r'"(s3|kms|iam|ec2):\*"', policy):
        yield "allows everything"
    if re.search(r"s3:(Delete|PutBucket|BypassGovernance)", policy):
        yield "may take backups back"


def _snapshots(body: Body) -> Iterator[str]:
    yield from _wrong(body, {"state": "ENABLED"})
    schedule = _block(_block(body, "policy_details"), "schedule")
    yield from _wrong(_block(schedule, "retain_rule"), {"count": "${var.snapshots_kept}"})


CHECKS: dict[str, Callable[[Body], Iterator[str]]] = {
    "aws_instance": _instance,
    "aws_ebs_volume": _volume,
    "aws_volume_attachment": _attachment,
    "aws_security_group": _security_group,
    "aws_vpc_security_group_ingress_rule": _rule,
    "aws_vpc_security_group_egress_rule": _rule,
    "aws_s3_bucket": _bucket,
    "aws_s3_bucket_versioning": _versioning,
    "aws_s3_bucket_object_lock_configuration": _lock,
    "aws_s3_bucket_server_side_encryption_configuration": _encryption,
    "aws_s3_bucket_public_access_block": _public_access,
    "aws_s3_bucket_policy": _bucket_policy,
    "aws_iam_role": _iam,
    "aws_iam_role_policy": _iam,
    "aws_dlm_lifecycle_policy": _snapshots,
}

_COMPANIONS = (
    "versioning",
    "object_lock_configuration",
    "server_side_encryption_configuration",
    "public_access_block",
    "lifecycle_configuration",
    "policy",
)


def _bucket_companions(found: dict[str, Body]) -> Iterator[str]:
    for name in found:
        kind, _, label = name.partition(".")
        if kind == "aws_s3_bucket":
            missing = [each for each in _COMPANIONS if f"aws_s3_bucket_{each}.{label}" not in found]
            yield from (f"{name} has no {each}" for each in missing)
        if kind == "aws_ebs_volume" and not any(n.startswith("aws_dlm_lifecycle_policy.") for n in found):
            yield f"{name} has no snapshots"
