"""Command: execute the notebooks on the running stack, and write copies that hold their output.

python -m notebooks_feature_dev.execute --out DIR [NOTEBOOK ...]

The notebooks themselves stay without output. Open a copy in any notebook viewer.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from jupyter_client.kernelspec import NATIVE_KERNEL_NAME
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from tqdm import tqdm

FOLDER = Path(__file__).resolve().parent
CELL_TIMEOUT_SECONDS = 300


class NotebookError(Exception):
    """A notebook did not run to its end; the message names it and the error."""


def notebooks() -> list[Path]:
    """Return the notebooks, in order of name."""
    return sorted(FOLDER.glob("*.ipynb"))


def executed(path: Path) -> nbformat.NotebookNode:
    """Return the notebook as it is after all its cells ran, in this environment; raises NotebookError."""
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as sockets:
        client = NotebookClient(
            notebook,
            timeout=CELL_TIMEOUT_SECONDS,
            kernel_name=NATIVE_KERNEL_NAME,  # this Python, whatever kernels are installed for the user
            resources={"metadata": {"path": str(path.parent)}},
        )
        # A kernel obeys whoever reaches it: it listens where nobody else on the machine can.
        kernel = client.create_kernel_manager()
        kernel.transport, kernel.ip = "ipc", str(Path(sockets) / "kernel")
        try:
            return client.execute()
        except CellExecutionError as error:
            raise NotebookError(f"{path.name}: {error.ename}: {error.evalue}") from None
        except (CellTimeoutError, DeadKernelError) as error:
            raise NotebookError(f"{path.name}: {error}") from None


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return 0, or 1 where a notebook failed."""
    parser = argparse.ArgumentParser(
        prog="python -m notebooks_feature_dev.execute",
        description="Execute the notebooks and write copies with their output.",
    )
    parser.add_argument("names", nargs="*", metavar="NOTEBOOK", help="file names; all where none is given")
    parser.add_argument("--out", type=Path, required=True, help="folder for the executed copies")
    options = parser.parse_args(arguments)
    known = {path.name: path for path in notebooks()}
    if unknown := [name for name in options.names if name not in known]:
        parser.error(f"no notebook {', '.join(unknown)} (there are: {', '.join(known)})")
    options.out.mkdir(parents=True, exist_ok=True)
    failed = False
    for name in tqdm(options.names or list(known), desc="notebooks", unit="notebook"):
        start = time.monotonic()
        try:
            notebook = executed(known[name])
        except NotebookError as error:
            print(error, file=sys.stderr)
            failed = True
            continue
        draft = options.out / f".{name}.{os.getpid()}"
        nbformat.write(notebook, draft)
        draft.replace(options.out / name)
        tqdm.write(f"{options.out / name} ({time.monotonic() - start:.1f} s)")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
