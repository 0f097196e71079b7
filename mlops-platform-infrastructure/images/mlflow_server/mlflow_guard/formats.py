"""Which files may be kept: nothing that is loaded by unpickling, whatever it is called.

A pickle runs code as it is read. Names and first bytes decide; archives (`.npz`, a PyTorch file is one) are
opened and their members looked at; an `MLmodel` must name loaders that read data.
"""

from __future__ import annotations

import io
import posixpath
import re
import zipfile
from collections.abc import Iterator
from typing import IO, Any

import yaml

from mlflow_guard.errors import RefusedError

SUFFIXES = frozenset(
    {"pkl", "pickle", "pck", "joblib", "cloudpickle", "dill", "pt", "pth", "ckpt", "skops", "mar", "sav", "p"}
)
# What may load a model: code that is kept as text beside data, and libraries with a format of their own.
LOADERS = frozenset(
    {
        "mlflow.pyfunc.loaders.code_model",
        "mlflow.xgboost",
        "mlflow.lightgbm",
        "mlflow.onnx",
        "mlflow.catboost",
    }
)
FLAVORS = frozenset({"python_function", "xgboost", "lightgbm", "onnx", "catboost"})
# Keys by which flavours name a pickle or how it is written.
_PICKLE_KEYS = frozenset({"python_model", "pickled_model", "pickle_module_name", "serialization_format"})
MLMODEL = "MLmodel"
HEAD_BYTES = 16
MAX_MLMODEL_BYTES = 1 << 20
_MAX_MEMBERS = 10_000
_PICKLE = re.compile(rb"\x80[\x02-\x05]")  # protocols 2 to 5 begin with their number
_ZIP = b"PK"
_NPY = b"\x93NUMPY"
_COMPRESSED = (
    b"\x1f\x8b",
    b"BZh",
    b"\xfd7zXZ",
    b"\x78\x01",
    b"\x78\x9c",
    b"\x78\xda",
    b"\x28\xb5\x2f\xfd",
    b"\x04\x22\x4d\x18",
)


def check_name(path: str) -> None:
    """Raise RefusedError for a name that says pickle, also under a further ending (`.pkl.gz`)."""
    for suffix in posixpath.basename(path).lower().split(".")[1:]:
        if suffix.strip() in SUFFIXES:
            raise RefusedError(
                400, f"pickled files are not kept here (.{suffix.strip()}); see the release bundle's formats"
            )


def check_head(head: bytes) -> None:
    """Raise RefusedError for first bytes of a pickle, or of a compressed stream that may hold one."""
    if _PICKLE.match(head):
        raise RefusedError(400, "the file is a pickle, whatever its name says")
    if head.startswith(_COMPRESSED):
        raise RefusedError(400, "compressed streams are not kept here: what is inside can't be checked")


def must_be_read_whole(path: str, head: bytes) -> bool:
    """Return whether a file is judged by all of its content."""
    return posixpath.basename(path) == MLMODEL or head.startswith((_ZIP, _NPY))


def check_content(path: str, stream: IO[bytes]) -> None:
    """Raise RefusedError for an archive with a pickle, an array of objects, an MLmodel that loads one."""
    if posixpath.basename(path) == MLMODEL:
        check_mlmodel(stream.read(MAX_MLMODEL_BYTES + 1))
        return
    head = stream.read(HEAD_BYTES)
    stream.seek(0)
    if head.startswith(_NPY):
        _check_array(stream)
    else:
        _check_archive(stream)


def check_mlmodel(text: bytes) -> None:
    """Raise RefusedError unless every flavour is loaded from data, or from code kept as text."""
    if len(text) > MAX_MLMODEL_BYTES:
        raise RefusedError(400, "the MLmodel file is too large")
    try:
        document = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError):
        raise RefusedError(400, "the MLmodel file is not YAML") from None
    flavors = document.get("flavors") if isinstance(document, dict) else None
    if not isinstance(flavors, dict) or not flavors:
        raise RefusedError(400, "the MLmodel file names no flavour")
    if unknown := sorted(str(name) for name in flavors if name not in FLAVORS):
        raise RefusedError(
            400, f"models of this kind are loaded by unpickling, or may be: {', '.join(unknown)[:200]}"
        )
    for name, flavor in flavors.items():
        if not isinstance(flavor, dict):
            raise RefusedError(400, "a flavour of the MLmodel file is no table")
        if found := sorted(_PICKLE_KEYS & {str(key) for key in flavor}):
            raise RefusedError(400, f"the model is loaded by unpickling: {', '.join(found)}")
        if name == "python_function" and flavor.get("loader_module") not in LOADERS:
            raise RefusedError(
                400, "the model's loader is not one that reads data; log it as code (models from code)"
            )
    for value in _texts(document):
        check_name(value)


def _texts(value: Any) -> Iterator[str]:
    """Give the values that may name a file: text without blanks."""
    if isinstance(value, dict):
        for each in value.values():
            yield from _texts(each)
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each)
    elif isinstance(value, str) and not re.search(r"\s", value):
        yield value


def _check_archive(stream: IO[bytes]) -> None:
    try:
        with zipfile.ZipFile(stream) as archive:
            members = archive.infolist()
            if len(members) > _MAX_MEMBERS:
                raise RefusedError(400, "the archive has too many members")
            for member in members:
                check_name(member.filename)
                with archive.open(member) as opened:
                    head = opened.read(1 << 16)
                check_head(head)
                if head.startswith(_ZIP):
                    raise RefusedError(400, "an archive inside an archive can't be checked")
                if head.startswith(_NPY):
                    _check_array(io.BytesIO(head))
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, OSError, ValueError, EOFError):
        raise RefusedError(400, "the archive can't be read") from None


def _check_array(stream: IO[bytes]) -> None:
    """Raise RefusedError for a NumPy array of objects: its content is a pickle."""
    head = stream.read(12)
    try:
        size = int.from_bytes(head[8:10], "little") if head[6] == 1 else int.from_bytes(head[8:12], "little")
    except IndexError:
        raise RefusedError(400, "the array can't be read") from None
    rest = head[10:] if head[6] == 1 else b""
    header = (rest + stream.read(min(size, 1 << 16)))[:size]
    if not re.search(rb"'descr':\s*(?:'[<>|=]?[biufcmMSUV]|\[)", header) or re.search(
        rb"'[|<>=]?O\d*'", header
    ):
        raise RefusedError(400, "an array of objects is a pickle; keep numbers")
