"""The drill's own stores and backup containers, on a network and volumes of their own."""

from __future__ import annotations

import json
import secrets
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from server_tools import places, server_settings
from server_tools.backup.errors import BackupError

ROOT = Path(__file__).resolve().parents[2]
UID = "10001:10001"
STORES = ("postgres", "redis", "objects")
FOLDERS = {"postgres": "/var/lib/postgresql", "redis": "/data", "objects": "/data"}
PORTS = {"postgres": 5432, "redis": 6379, "objects": 8333}
SCRATCH = "/tmp:size=64m,mode=1777"  # noqa: S108 - within a container
# The same controls as the stacks'.
LOCKED = ("--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--read-only",
          "--tmpfs", SCRATCH)  # fmt: skip
AGENT = ("python3", "-m", "server_tools.backup.agent")
READY_SECONDS = 60.0


def docker(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run the engine's client; raises BackupError with what it said."""
    done = subprocess.run(["docker", *words], capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise BackupError(f"docker {words[0]}: {(done.stderr or done.stdout).strip()[-1500:]}")
    return done


def images() -> dict[str, str]:
    """Return the pinned images."""
    return server_settings.parse(places.VERSIONS.read_text(encoding="utf-8"))


def wait_for(ready: Callable[[], Any], what: str, seconds: float = READY_SECONDS) -> None:
    """Call `ready` until it raises nothing and returns something true."""
    end = time.monotonic() + seconds
    last: Exception | None = None
    while time.monotonic() < end:
        try:
            if ready():
                return
        except Exception as error:
            last = error
        time.sleep(0.1)
    raise BackupError(f"{what} is not ready after {seconds:.0f} s: {last}")


class Platform:
    """Three stores and their backup; everything goes when its `with` block ends."""

    def __init__(self, backup_image: str = "mlops/backup:dev") -> None:
        self.name = f"mlops-drill-{secrets.token_hex(3)}"
        self.backup_image = backup_image
        self.password = secrets.token_hex(16)
        self.access_key, self.secret_key = secrets.token_hex(8), secrets.token_hex(16)
        self._images = images()
        self._config = tempfile.TemporaryDirectory(prefix="mlops-drill-")

    def __enter__(self) -> Platform:
        docker("network", "create", self.name)
        for store in (*STORES, "backup"):
            self.new_volume(store)
        identity = {
            "name": "drill",
            "credentials": [{"accessKey": self.access_key, "secretKey": self.secret_key}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        folder = Path(self._config.name)
        folder.chmod(0o755)
        (folder / "s3.json").write_text(json.dumps({"identities": [identity]}), encoding="utf-8")
        hba = (
            "local all all trust\nhost all all all scram-sha-256\nhost replication backup all scram-sha-256\n"
        )
        (folder / "pg_hba.conf").write_text(hba, encoding="utf-8")
        for path in folder.iterdir():
            path.chmod(0o644)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            for name in (*STORES, "receiver", "follower"):
                said = docker("logs", "--tail", "15", f"{self.name}-{name}", check=False)
                print(f"--- {name}\n{said.stdout[-2000:]}{said.stderr[-2000:]}", flush=True)
        listed = docker("ps", "-aq", "--filter", f"network={self.name}", check=False).stdout.split()
        if listed:
            docker("rm", "--force", "--volumes", *listed, check=False)
        for store in (*STORES, "backup"):
            docker("volume", "rm", self.volume(store), check=False)
        docker("network", "rm", self.name, check=False)
        self._config.cleanup()

    def volume(self, store: str) -> str:
        """Return the name of a store's volume."""
        return f"{self.name}-{store}-data"

    def new_volume(self, store: str) -> None:
        """Create a store's volume, empty and given to the containers' user."""
        docker("volume", "create", self.volume(store))
        mount = ("--volume", f"{self.volume(store)}:/volume")
        docker(
            "run", "--rm", "--user", "0", *mount, "--entrypoint", "chown", self.backup_image, UID, "/volume"
        )

    def start(self, store: str) -> int:
        """Start a store on its volume, wait until it answers, and return its port on this machine."""
        commands: dict[str, tuple[str, list[str], list[str]]] = {
            "postgres": (
                self._images["POSTGRES_IMAGE"],
                ["--env", f"POSTGRES_PASSWORD={self.password}", "--shm-size", "256m",
                 "--tmpfs", "/var/run/postgresql:mode=1777", "--env", "POSTGRES_INITDB_ARGS=--data-checksums",
                 "--volume", f"{self._config.name}/pg_hba.conf:/etc/postgresql/pg_hba.conf:ro"],
                ["postgres", "-c", "hba_file=/etc/postgresql/pg_hba.conf", "-c", "wal_compression=on",
                 "-c", "max_wal_size=4GB", "-c", "max_connections=200"],
            ),
            "redis": (
                self._images["REDIS_IMAGE"], [],
                ["redis-server", "--appendonly", "yes", "--appendfsync", "everysec", "--save", "",
                 "--requirepass", self.password, "--dir", "/data", "--hash-max-listpack-entries", "8"],
            ),
            "objects": (
                self._images["SEAWEEDFS_IMAGE"],
                ["--volume", f"{self._config.name}/s3.json:/etc/seaweedfs/s3.json:ro", "--env", "HOME=/tmp"],
                ["server", "-dir=/data", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer=true", "-s3=true",
                 "-s3.ip.bind=0.0.0.0", "-s3.port=8333", "-s3.config=/etc/seaweedfs/s3.json",
                 "-s3.localSocket=/tmp/s3.sock", "-filer.localSocket=/tmp/filer.sock", "-s3.port.iceberg=0",
                 "-s3.port.lance=0", "-master.telemetry=false", "-master.electionTimeout=500ms",
                 "-master.volumeSizeLimitMB=512", "-volume.max=0", "-volume.preStopSeconds=1"],
            ),
        }  # fmt: skip
        image, options, command = commands[store]
        mount = f"{self.volume(store)}:{FOLDERS[store]}"
        self._run(
            store, image, command, ("--volume", mount, "--publish", f"127.0.0.1::{PORTS[store]}", *options)
        )
        shown = docker("port", f"{self.name}-{store}", str(PORTS[store])).stdout
        return int(shown.split()[0].rsplit(":", 1)[1])

    def destroy(self, store: str) -> float:
        """Kill a store without warning and delete its volume; return when it was killed."""
        name = f"{self.name}-{store}"
        docker("kill", "--signal", "KILL", name)
        killed = time.time()
        docker("rm", "--force", "--volumes", name)
        docker("volume", "rm", self.volume(store))
        return killed

    def start_agent(self, name: str, verb: str) -> None:
        """Start a lasting container of the backup stack."""
        self._run(name, self.backup_image, [*AGENT, verb], self._agent_options())

    def agent(self, *words: str, target: str = "", check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command of the backup stack, with a store's volume as target."""
        mount = ("--volume", f"{self.volume(target)}:/target") if target else ()
        options = ("--rm", "--network", self.name, "--user", UID, *LOCKED, *self._agent_options(), *mount)
        return docker("run", *options, self.backup_image, *AGENT, *words, check=check)

    def in_backup_volume(self, script: str) -> str:
        """Run a shell script where the backups lie."""
        mount = ("--volume", f"{self.volume('backup')}:/backup")
        options = ("--rm", "--user", UID, *mount, "--entrypoint", "sh")
        return docker("run", *options, self.backup_image, "-euc", script).stdout

    def _agent_options(self) -> Sequence[str]:
        environment: Mapping[str, str] = {
            "POSTGRES_PASSWORD": self.password, "BACKUP_DB_PASSWORD": self.password,
            "BACKUP_REPOSITORY_PASSWORD": self.password, "REDIS_PASSWORD": self.password,
            "BACKUP_PARTS": "postgres redis objects", "BACKUP_POSTGRES_HOST": "postgres",
            "BACKUP_REDIS_HOST": "redis", "S3_ENDPOINT_URL": "http://objects:8333",
            "AWS_ACCESS_KEY_ID": self.access_key, "AWS_SECRET_ACCESS_KEY": self.secret_key, "HOME": "/backup",
        }  # fmt: skip
        passed = [word for name, value in environment.items() for word in ("--env", f"{name}={value}")]
        return ("--volume", f"{self.volume('backup')}:/backup", *passed)

    def _run(self, name: str, image: str, command: Sequence[str], options: Sequence[str]) -> None:
        docker(
            "run", "--detach", "--name", f"{self.name}-{name}",
            "--network", self.name, "--network-alias", name,
            "--user", UID, *LOCKED, *options, image, *command,
        )  # fmt: skip
