"""The images that ours stand on: pulled where a registry can be reached, else made of Debian's packages.

A stand-in has the same name, Python and Debian release, the label `mlops.stand-in`, and this machine's
certificate authorities, so that what is installed in a build comes through the machine's own network.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from local_engine.engine import EngineError

PYTHON = "python:3.11-slim-bookworm"
PULL_SECONDS = 300
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
PACKAGES = "ca-certificates,python3,python3-venv"
_DOCKERFILE = """\
FROM {tarball}
COPY ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
ENV SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt PIP_CERT=/etc/ssl/certs/ca-certificates.crt
LABEL mlops.stand-in="Debian bookworm, {packages}"
"""


def ensure(host: str, name: str = PYTHON) -> str:
    """Make an image available to the engine at `host`; return `there`, `pulled` or `stand-in`.

    Raises EngineError where it can neither be pulled nor made.
    """
    if docker(host, "image", "inspect", name).returncode == 0:
        return "there"
    if docker(host, "pull", "--quiet", name, seconds=PULL_SECONDS).returncode == 0:
        return "pulled"
    maker = shutil.which("mmdebstrap")
    if maker is None:
        raise EngineError(
            f"{name} can't be pulled, and without mmdebstrap (Debian: apt-get install mmdebstrap) "
            "no stand-in can be made"
        )
    with tempfile.TemporaryDirectory() as scratch:
        _make(host, name, maker, Path(scratch))
    return "stand-in"


def _make(host: str, name: str, maker: str, scratch: Path) -> None:
    tarball, imported = scratch / "base.tar", "mlops/debian-bookworm"
    _done(
        subprocess.run(
            [
                maker,
                "--quiet",
                "--variant=minbase",
                f"--include={PACKAGES}",
                '--aptopt=APT::Install-Recommends "false"',
                *(f"--dpkgopt=path-exclude=/usr/share/{each}/*" for each in ("doc", "man", "locale")),
                "bookworm",
                str(tarball),
            ],
            capture_output=True,
            check=False,
            text=True,
            errors="replace",
        ),
        "mmdebstrap",
    )
    _done(docker(host, "import", str(tarball), imported), "docker import")
    context = scratch / "context"
    context.mkdir()
    shutil.copy(CERTIFICATES, context)
    (context / "Dockerfile").write_text(_DOCKERFILE.format(tarball=imported, packages=PACKAGES))
    _done(docker(host, "build", "--quiet", "--tag", name, str(context)), "docker build")


def docker(host: str, *arguments: str, seconds: float | None = None) -> subprocess.CompletedProcess[str]:
    """Run the engine's client at `host`; the caller looks at its exit code, 1 after `seconds` of silence."""
    command = ["docker", "--host", host, *arguments]
    try:
        return subprocess.run(
            command, capture_output=True, check=False, timeout=seconds, text=True, errors="replace"
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", "no answer in time")


def _done(process: subprocess.CompletedProcess[str], what: str) -> None:
    if process.returncode != 0:
        raise EngineError(f"{what} failed: {process.stderr.strip()[-500:]}")
