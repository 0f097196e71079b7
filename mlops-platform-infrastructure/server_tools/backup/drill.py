"""`python -m server_tools drill`: load, back up, write on, destroy, restore, compare; then damage the backup.

Everything is the drill's own: containers, network and volumes with a name of their own, gone at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from server_tools.backup import drill_data
from server_tools.backup.drill_containers import ROOT, Platform, docker, wait_for
from server_tools.backup.errors import BackupError

TARGETS = Path(__file__).with_name("drill_targets.yaml")
WRITING_SECONDS = (2.0, 6.0)
COMPARISONS: dict[str, Callable[[float, float], bool]] = {"<=": float.__le__, ">=": float.__ge__}


def result(name: str, value: float, unit: str, targets: dict[str, str]) -> dict[str, Any]:
    """Return a figure in the form of every report, held to its target where it has one.

    >>> result("lost", 0, "rows", {"lost": "<= 0"})["met"]
    True
    """
    target = targets.get(name)
    met = None
    if target:
        comparison, bound = target.split(" ")
        met = COMPARISONS[comparison](float(value), float(bound))
    return {"name": name, "value": round(value, 3), "unit": unit, "peer": None, "peer_value": None,
            "ratio": None, "target": target, "met": met}  # fmt: skip


class Steps:
    """Says what is done, and keeps how long it took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Measure the block."""
        print(f"{name} ...", flush=True)
        began = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - began, 2)
        print(f"{name}: {self.seconds[name]:.1f} s", flush=True)


def run(scale: str, backup_image: str) -> dict[str, Any]:
    """Run the drill and return its report."""
    steps = Steps()
    targets: dict[str, str] = yaml.safe_load(TARGETS.read_text(encoding="utf-8"))
    with Platform(backup_image) as stack:
        with steps("start"):
            ports = _start(stack)
        with steps(f"load ({scale})"):
            drill_data.load(ports, scale)
        with steps("receiver and follower"):
            _start_backup(stack)
        before = _checksums(ports)
        rows, keys = drill_data.journal_writer(ports), drill_data.key_writer(ports)
        with steps("back up"):
            said = stack.agent("backup").stdout
            print(said, end="", flush=True)
        time.sleep(random.uniform(*WRITING_SECONDS))  # noqa: S311 - any moment will do
        with steps("destroy"):
            destroyed = [stack.destroy(store) for store in ("postgres", "redis", "objects")]
            rows.stop()
            keys.stop()
        print(f"writers ended with {rows.ended!r} and {keys.ended!r}", flush=True)
        restored = {}
        for store in ("postgres", "redis", "objects"):
            with steps(f"restore {store}"):
                restored[store] = _restore(stack, store, ports)
        with steps("compare"):
            after = _checksums(ports)
            lost_rows = drill_data.lost_rows(ports, len(rows.acknowledged))
            kept = drill_data.kept_writes(ports)
            lost_seconds = drill_data.lost_seconds(keys.acknowledged, kept)
        all_done = time.time() - destroyed[0]
        with steps("damage the backup"):
            named = _damage(stack)
    figures = [
        result("PostgreSQL: acknowledged rows lost", lost_rows, "rows", targets),
        result("Redis: seconds of acknowledged writes lost", lost_seconds, "s", targets),
        result("Redis: acknowledged writes lost", max(0, len(keys.acknowledged) - kept), "writes", targets),
        result("all: from destruction to verified data", all_done, "s", targets),
        *(result(f"restore {store}", steps.seconds[f"restore {store}"], "s", targets) for store in restored),
        result("back up all", steps.seconds["back up"], "s", targets),
        result(
            "tables whose checksum differs",
            len(drill_data.differing(*_pair(before, after, 0))),
            "tables",
            targets,
        ),
        result(
            "Redis keys that differ", len(drill_data.differing(*_pair(before, after, 1))), "keys", targets
        ),
        result(
            "objects that differ", len(drill_data.differing(*_pair(before, after, 2))), "objects", targets
        ),
        result("damage detected and named", float(all(named.values())), "", targets),
        result("acknowledged rows written", len(rows.acknowledged), "rows", targets),
        result("acknowledged Redis writes", len(keys.acknowledged), "writes", targets),
    ]
    return {
        "command": f"python -m server_tools drill --scale {scale}",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"system": platform.system(), "machine": platform.machine(), "cpus": os.cpu_count(),
                    "python": platform.python_version()},
        "compared": dict(zip(("tables", "keys", "objects"), (len(each) for each in before), strict=True)),
        "backup": said.splitlines(), "restored": restored, "damage": named, "seconds": steps.seconds,
        "results": figures,
    }  # fmt: skip


def _pair(before: tuple[Any, ...], after: tuple[Any, ...], index: int) -> tuple[Any, Any]:
    return before[index], after[index]


def _start(stack: Platform) -> drill_data.Ports:
    numbers = {store: stack.start(store) for store in ("postgres", "redis", "objects")}
    ports = drill_data.Ports(**numbers, password=stack.password, access_key=stack.access_key,
                             secret_key=stack.secret_key)  # fmt: skip
    _wait(ports)
    return ports


def _wait(ports: drill_data.Ports, *stores: str) -> None:
    asks: dict[str, Callable[[], Any]] = {
        "postgres": lambda: ports.database("postgres").execute("select 1"),
        "redis": lambda: ports.online_store().ping(),
        "objects": lambda: _writable(ports),
    }
    for store in stores or asks:
        wait_for(asks[store], store)


def _writable(ports: drill_data.Ports) -> bool:
    store = ports.store()
    store.create_bucket(Bucket="ready")
    store.put_object(Bucket="ready", Key="ready", Body=b"1")
    store.delete_object(Bucket="ready", Key="ready")
    store.delete_bucket(Bucket="ready")
    return True


def _start_backup(stack: Platform) -> None:
    stack.start_agent("receiver", "receive-wal")
    stack.start_agent("follower", "follow-redis")
    stack.agent("prepare")
    complete = 'test -n "$(ls /backup/redis 2>/dev/null)" && echo complete || true'
    wait_for(lambda: "complete" in stack.in_backup_volume(complete), "the follower of Redis")


def _checksums(ports: drill_data.Ports) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    return (
        drill_data.table_checksums(ports),
        drill_data.key_checksums(ports),
        drill_data.object_checksums(ports),
    )


def _restore(stack: Platform, store: str, ports: drill_data.Ports) -> Any:
    """Restore a store into a new volume and start it there; return what the restore said."""
    stack.new_volume(store)
    if store == "objects":  # restored through S3, into a running, empty store
        ports.objects = stack.start(store)
        _wait(ports, store)
        return json.loads(stack.agent("restore", store).stdout)
    target = "/target/18/docker" if store == "postgres" else "/target"
    done = json.loads(stack.agent("restore", store, "--target", target, target=store).stdout)
    setattr(ports, store, stack.start(store))
    _wait(ports, store)
    return done


def _damage(stack: Platform) -> dict[str, bool]:
    """Damage WAL, Redis' commands and the repository, one at a time; tell whether it is refused by name."""
    docker("rm", "--force", f"{stack.name}-receiver", f"{stack.name}-follower")
    found = {}
    segment = stack.in_backup_volume("ls -d /backup/wal/*-00000001/* | sort | tail -1").strip()
    stack.in_backup_volume(f"cp {segment} /backup/kept; truncate -s -100000 {segment}")
    found["cut WAL file"] = _refused(stack, "postgres", segment)
    stack.in_backup_volume(f"mv /backup/kept {segment}")
    commands = stack.in_backup_volume("ls -d /backup/redis/*/incr.aof | sort | head -1").strip()
    stack.in_backup_volume(f"printf X | dd of={commands} bs=1 seek=20000 conv=notrunc 2>/dev/null")
    generation = Path(commands).parent.name
    found["changed Redis command"] = _refused(stack, "redis", commands, "--generation", generation)
    pack = stack.in_backup_volume("ls -S /backup/repository/data/*/* | head -1").strip()
    stack.in_backup_volume(
        f"chmod u+w {pack}; printf X | dd of={pack} bs=1 seek=3000 conv=notrunc 2>/dev/null"
    )
    checked = stack.agent("check", check=False)
    found["changed pack of the repository"] = checked.returncode != 0 and Path(pack).name in checked.stderr
    return found


def _refused(stack: Platform, part: str, file: str, *options: str) -> bool:
    scratch = f"/backup/damaged-{part}"
    done = stack.agent("restore", part, "--target", scratch, *options, check=False)
    handed_over = stack.in_backup_volume(f"ls {scratch} 2>/dev/null | wc -l").strip() != "0"
    print(f"damaged {Path(file).name}: {done.stderr.strip()[-200:]}", flush=True)
    said = re.sub(r"\s+", " ", done.stderr)
    return done.returncode != 0 and Path(file).name.removesuffix(".partial") in said and not handed_over


def main(arguments: list[str]) -> int:
    """Run the command line; exit code 1 when a target is missed."""
    parser = argparse.ArgumentParser(prog="server_tools drill", description=__doc__)
    parser.add_argument("--scale", choices=sorted(drill_data.SCALES), default="demo")
    parser.add_argument("--image", default="mlops/backup:dev", help="the backup image")
    asked = parser.parse_args(arguments)
    if docker("image", "inspect", asked.image, check=False).returncode:
        raise BackupError(f"there is no image {asked.image}: make images")
    report = run(asked.scale, asked.image)
    local = Path(os.environ.get("LOCAL_DIR") or ROOT.parent / ".local")
    path = local / "reports" / "drill.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    for each in report["results"]:
        mark = {True: "met", False: "MISSED", None: ""}[each["met"]]
        print(f"{each['name']:<46} {each['value']:>10} {each['unit']:<8} {each['target'] or '':<8} {mark}")
    print(path)
    return 0 if all(each["met"] is not False for each in report["results"]) else 1
