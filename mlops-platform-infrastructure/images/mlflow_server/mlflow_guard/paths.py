"""Which paths and addresses may name an artifact: relative, plain, inside the store, and nothing else."""

from __future__ import annotations

import re
from urllib.parse import unquote_to_bytes

from mlflow_guard.errors import RefusedError

# A separator, a dot, a percent sign or a control character has no reason to be encoded.
_ENCODED_DELIMITER = re.compile(rb"%(?:2[eEfF5]|5[cC]|[01][0-9a-fA-F]|7[fF])")
_STILL_ENCODED = re.compile(r"%[0-9a-fA-F]{2}")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_MODEL = re.compile(r"models:/m-[0-9a-f]{32}")
_STORE = "mlflow-artifacts:/"
MAX_PATH = 1024


def request_path(raw: bytes) -> str:
    """Return the decoded path of a request target; raises RefusedError unless it can only be read one way."""
    if len(raw) > MAX_PATH or not raw.startswith(b"/"):
        raise RefusedError(400, "the path is too long or does not begin with a slash")
    if any(byte <= 0x20 or byte >= 0x7F for byte in raw):
        raise RefusedError(400, "the path holds characters that must be encoded")
    if _ENCODED_DELIMITER.search(raw):
        raise RefusedError(400, "the path holds an encoded separator, dot, percent sign or control character")
    path = _decoded(unquote_to_bytes(raw))
    _check_segments(path[1:], allow_empty_end=True)
    return path


def artifact_path(text: str, *, file: bool = False) -> str:
    """Return a path inside the artifact store; raises RefusedError for any that could lead out of it.

    `file` asks for a file's path: neither empty nor with a slash at its end.
    """
    if len(text) > MAX_PATH:
        raise RefusedError(400, "the artifact's path is too long")
    if _STILL_ENCODED.search(text):
        raise RefusedError(400, "the artifact's path is encoded twice")
    if _SCHEME.match(text):
        raise RefusedError(400, "an artifact's path is no address")
    if file and (not text or text.endswith("/")):
        raise RefusedError(400, "the artifact's path must name a file")
    if text:
        _check_segments(text, allow_empty_end=True)
    return text


def model_source(text: str) -> str:
    """Return the source of a model version: a logged model, or a folder of this server's artifact store."""
    if _MODEL.fullmatch(text):
        return text
    store_path(text)
    return text


def store_path(address: str) -> str:
    """Return the path inside the store that an address `mlflow-artifacts:/path` names."""
    path = address.removeprefix(_STORE)
    if path == address or not path or any(character in path for character in "?#;"):
        raise RefusedError(
            400, "nothing is read but models:/m-... and folders of this server's store, mlflow-artifacts:/..."
        )
    return artifact_path(path, file=True)


def _decoded(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise RefusedError(400, "the path is not UTF-8") from None


def _check_segments(path: str, *, allow_empty_end: bool) -> None:
    if "\\" in path or any(ord(character) < 0x20 or ord(character) == 0x7F for character in path):
        raise RefusedError(400, "the path holds a backslash or a control character")
    segments = path.split("/")
    if allow_empty_end and segments[-1] == "":
        segments.pop()
    for segment in segments:
        if segment.strip() in ("", ".", ".."):
            raise RefusedError(400, "the path holds an empty segment, '.' or '..'")
