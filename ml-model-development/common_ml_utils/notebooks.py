"""Command: execute the notebooks of a folder in this environment, and write copies that hold their output.

`python -m common_ml_utils.notebooks FOLDER --out DIR [--seconds N]`, for `models/<model>/notebooks` and
`research_and_poc`. The notebooks themselves are kept without output; open a copy in any notebook viewer.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common_ml_utils.errors import NotebookError

if TYPE_CHECKING:
    from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 300.0
KEPT_METADATA = {"kernelspec", "language_info"}


def notebooks_in(folder: Path) -> list[Path]:
    """Return the notebooks of a folder in order of name; raises NotebookError where there is none."""
    found = sorted(folder.glob("*.ipynb"))
    if not found:
        raise NotebookError(f"{folder} holds no notebook")
    return found


def stored_output(path: Path) -> list[str]:
    """Return what a notebook holds of an earlier run, one complaint a finding: empty is as it must be."""
    notebook = _read(path)
    found = [f"metadata {key}" for key in notebook.metadata if key not in KEPT_METADATA]
    for number, cell in enumerate(notebook.cells, start=1):
        if cell.get("outputs"):
            found.append(f"cell {number} has output")
        if cell.get("execution_count") is not None:
            found.append(f"cell {number} has an execution count")
        if cell.metadata:
            found.append(f"cell {number} has metadata")
    return found


def execute(path: Path, *, seconds: float = SECONDS) -> NotebookNode:
    """Return the notebook as it is after all its cells ran, within `seconds` for the whole of it.

    It runs with this Python in the folder of its project (the one above `notebooks/`), with the project and
    this root on the path. Raises NotebookError that names notebook and cell; the file is left as it is.
    """
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    if complaints := stored_output(path):
        raise NotebookError(f"{path.name} holds what an earlier run left: {', '.join(complaints)}")
    notebook, project = _read(path), _project(path)
    deadline = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as scratch:
        client = _client(notebook, project, Path(scratch), deadline)
        running = {"cell": 1}
        client.on_cell_start = lambda cell, cell_index: running.update(cell=cell_index + 1)
        try:
            return client.execute(env=_environment(project, Path(scratch)))
        except CellExecutionError as error:
            problem = f"{error.ename}: {error.evalue}"
        except CellTimeoutError:
            problem = f"not done within the {seconds:g} seconds of the notebook"
        except DeadKernelError:
            problem = "the kernel died (out of memory?)"
        raise NotebookError(f"{path.name}, cell {running['cell']}: {problem}")


def _read(path: Path) -> NotebookNode:
    """Read and check a notebook file."""
    import nbformat

    try:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
    except OSError as error:
        raise NotebookError(f"{path} can't be read: {error.strerror}") from error
    except Exception as error:  # nbformat raises a type of its own for each way of not being a notebook
        raise NotebookError(f"{path} is not a notebook: {str(error).splitlines()[0]}") from error
    return notebook


def _project(path: Path) -> Path:
    """Return the working folder: the project above `notebooks/`, else the notebook's own folder."""
    folder = path.resolve().parent
    return folder.parent if folder.name == "notebooks" else folder


def _client(notebook: NotebookNode, project: Path, scratch: Path, deadline: float) -> Any:
    """Return a client whose kernel is this Python, whatever kernels are installed for the user."""
    from jupyter_client.kernelspec import NATIVE_KERNEL_NAME, KernelSpec
    from nbclient import NotebookClient

    client = NotebookClient(
        notebook,
        kernel_name=NATIVE_KERNEL_NAME,
        timeout_func=lambda _: max(1, int(deadline - time.monotonic())),
        resources={"metadata": {"path": str(project)}},
    )
    kernel = client.create_kernel_manager()
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    kernel._kernel_spec = KernelSpec(argv=command, display_name="Python 3", language="python")
    # A kernel obeys whoever reaches it: sockets in a folder of ours, not ports that anyone here can open.
    kernel.transport, kernel.ip = "ipc", str(scratch / "kernel")
    kernel.connection_file = str(scratch / "connection.json")
    return client


def _environment(project: Path, scratch: Path) -> dict[str, str]:
    """Return this process's environment with project and root first on the path; no profile, no progress."""
    path = [str(project), str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(part for part in path if part),
        "IPYTHONDIR": str(scratch / "ipython"),
        "TQDM_DISABLE": "1",  # a bar leaves a line of output for each step
    }


def write_executed(paths: Sequence[Path], out: Path, seconds: float = SECONDS) -> list[str]:
    """Execute the notebooks and write each finished copy to `out`; return what failed, one line each."""
    import nbformat
    from tqdm import tqdm

    out.mkdir(parents=True, exist_ok=True)
    failures = []
    for path in tqdm(paths, desc="notebooks", unit="notebook"):
        target, start = out / path.name, time.monotonic()
        if target.resolve() == path.resolve():
            raise NotebookError(f"--out {out} is the notebooks' own folder: they are kept without output")
        try:
            executed = execute(path, seconds=seconds)
        except NotebookError as error:
            failures.append(str(error))
            continue
        draft = out / f".{path.name}.{os.getpid()}"
        nbformat.write(executed, draft)
        draft.replace(target)
        tqdm.write(f"{target} ({time.monotonic() - start:.1f} s)", file=sys.stderr)
    return failures


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 0, or 1 where a notebook failed."""
    parser = argparse.ArgumentParser(
        prog="python -m common_ml_utils.notebooks",
        description="Execute the notebooks of a folder and write copies with their output.",
    )
    parser.add_argument("folder", type=Path, help="folder of the notebooks")
    parser.add_argument("--out", type=Path, required=True, help="folder for the executed copies")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="limit a notebook (%(default)g)")
    options = parser.parse_args(arguments)
    try:
        failures = write_executed(notebooks_in(options.folder), options.out, options.seconds)
    except NotebookError as error:
        failures = [str(error)]
    for failure in failures:
        print(f"NotebookError: {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
