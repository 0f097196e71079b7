"""The requests that must be refused: the shapes of MLflow's published weaknesses, and their neighbours."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import zipfile
from dataclasses import dataclass, field
from typing import Any

import numpy as np

STORE = "/api/2.0/mlflow-artifacts/artifacts"
AJAX = "/ajax-api/2.0/mlflow-artifacts/artifacts"
API = "/api/2.0/mlflow"


@dataclass(frozen=True)
class Attack:
    """A request, who sends it, and the only answers that are a refusal."""

    name: str
    method: str
    target: str
    body: Any = None
    role: str | None = "admin"
    headers: dict[str, str] = field(default_factory=dict)
    refused: frozenset[int] = frozenset({400, 403})


# How the file beside the store is reached from inside it, if anything lets it.
ESCAPES = {
    "plain": "../outside.txt",
    "single": "..%2foutside.txt",
    "single, upper case": "..%2Foutside.txt",
    "dots encoded": "%2e%2e/outside.txt",
    "all encoded": "%2e%2e%2foutside.txt",
    "double": "%252e%252e%252foutside.txt",
    "double separator": "..%252foutside.txt",
    "triple": "%25252e%25252e%25252foutside.txt",
    "overlong UTF-8": "..%c0%afoutside.txt",
    "backslash": "..\\outside.txt",
    "encoded backslash": "..%5coutside.txt",
    "double encoded backslash": "..%255coutside.txt",
    "inside a folder": "a/../../outside.txt",
    "encoded inside a folder": "a/..%2f..%2foutside.txt",
    "null byte": "a%00/../../outside.txt",
    "null byte at the end": "outside.txt%00.json",
    "double null byte": "a%2500.txt",
    "double slash": "/outside.txt",
    "absolute": "//etc/passwd",
    "absolute, encoded": "%2fetc%2fpasswd",
    "absolute, double": "%252fetc%252fpasswd",
    "dot segments": "./././outside.txt",
    "matrix parameter": "..;/outside.txt/..%2f",
    "carriage return": "a%0d%0aX:1",
    "file address": "file:///etc/passwd",
    "file address, short": "file:/etc/passwd",
    "metadata address": "http://169.254.169.254/latest/meta-data/",
}


def _archive(name: str, content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, content)
    return buffer.getvalue()


def _objects() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, a=np.array([{"x": 1}], dtype=object))
    return buffer.getvalue()


def _array_of_objects() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([object], dtype=object))
    return buffer.getvalue()


PICKLE = pickle.dumps({"x": [1, 2, 3]})
MLMODEL = """\
flavors:
  python_function:
    loader_module: {loader}
    python_version: 3.11.7
{more}"""

PICKLED_FILES: dict[str, tuple[str, bytes]] = {
    "a pickle by its name": ("1/run/artifacts/model.pkl", b"x"),
    "upper case": ("1/run/artifacts/MODEL.PKL", b"x"),
    "python_model": ("1/models/m-1/artifacts/python_model.pkl", PICKLE),
    "pickle, spelt out": ("1/run/artifacts/model.pickle", b"x"),
    "cloudpickle": ("1/run/artifacts/model.cloudpickle", b"x"),
    "joblib": ("1/run/artifacts/model.joblib", b"x"),
    "torch": ("1/run/artifacts/model.pt", b"x"),
    "torch weights": ("1/run/artifacts/model.pth", b"x"),
    "compressed pickle": ("1/run/artifacts/model.pkl.gz", b"x"),
    "a pickle under another name": ("1/run/artifacts/model.json", PICKLE),
    "protocol 2": ("1/run/artifacts/model.ubj", pickle.dumps([1], protocol=2)),
    "a pickle without an ending": ("1/run/artifacts/model", PICKLE),
    "a compressed stream": ("1/run/artifacts/data.bin", gzip.compress(PICKLE)),
    "torch's archive": ("1/run/artifacts/weights.bin", _archive("archive/data.pkl", PICKLE)),
    "a pickle in an archive": ("1/run/artifacts/model.zip", _archive("model.json", PICKLE)),
    "an archive in an archive": ("1/run/artifacts/model.zip", _archive("inner", _archive("a", b"x"))),
    "objects in an npz": ("1/run/artifacts/model.npz", _objects()),
    "objects in an npy": ("1/run/artifacts/model.npy", _array_of_objects()),
    "an MLmodel of a python_model": (
        "1/models/m-1/artifacts/MLmodel",
        MLMODEL.format(loader="mlflow.pyfunc.model", more="    python_model: python_model.pkl\n").encode(),
    ),
    "an MLmodel of scikit-learn": (
        "1/models/m-1/artifacts/MLmodel",
        b"flavors:\n  sklearn:\n    pickled_model: model.bin\n    serialization_format: cloudpickle\n",
    ),
    "an MLmodel of torch": (
        "1/models/m-1/artifacts/MLmodel",
        MLMODEL.format(loader="mlflow.pytorch", more="").encode(),
    ),
    "an MLmodel of any module": (
        "1/models/m-1/artifacts/MLmodel",
        MLMODEL.format(loader="os", more="").encode(),
    ),
    "an MLmodel that is no YAML": ("1/models/m-1/artifacts/MLmodel", b"flavors: [\x00"),
    "an MLmodel that builds objects": (
        "1/models/m-1/artifacts/MLmodel",
        b"flavors: !!python/object/apply:os.system [id]\n",
    ),
}

LOCAL_ADDRESSES = (
    "file:///etc",
    "file:/etc",
    "FILE:///etc",
    "file://localhost/etc",
    "/etc",
    "etc",
    "./store",
    "dbfs:/mnt",
    "dbfs:///mnt",
    "s3://mlflow/artifacts",
    "gs://bucket/x",
    "hdfs://namenode/x",
    "ftp://169.254.169.254/x",
    "sftp://127.0.0.1/x",
    "http://169.254.169.254/latest/meta-data/iam/security-credentials/",
    "http://[fd00:ec2::254]/latest/meta-data/",
    "http://metadata.google.internal/computeMetadata/v1/",
    "http://2852039166/latest/meta-data/",
    "http://127.0.0.1:6379/",
    "https://example.org/model",
    "mlflow-artifacts://169.254.169.254/x",
    "mlflow-artifacts://user@server1:8333/x",
    "mlflow-artifacts:/../outside",
    "mlflow-artifacts:/1/../../outside",
    "mlflow-artifacts:/%2e%2e/outside",
    "mlflow-artifacts:/..%2foutside",
    "mlflow-artifacts:/%252e%252e%252foutside",
    "mlflow-artifacts:/1/run\\..\\outside",
    "mlflow-artifacts:/1/run?path=../outside",
    "mlflow-artifacts:/1/run#/../outside",
    "mlflow-artifacts://etc",
    "mlflow-artifacts:////etc",
    "mlflow-artifacts:/",
    "models:/m-00000000000000000000000000000000/../..",
    "models:/other/1",
    "runs:/0123456789abcdef0123456789abcdef/../..",
    "",
)


def traversals() -> list[Attack]:
    """Every escape on every route that takes a path."""
    found = []
    for name, path in ESCAPES.items():
        for base in (STORE, AJAX):
            found.append(Attack(f"download {name} ({base[1:5]})", "GET", f"{base}/{path}"))
            found.append(Attack(f"upload {name} ({base[1:5]})", "PUT", f"{base}/{path}", b"x"))
            found.append(Attack(f"delete {name} ({base[1:5]})", "DELETE", f"{base}/{path}"))
            found.append(Attack(f"list {name} ({base[1:5]})", "GET", f"{base}?path={_in_query(path)}"))
        for verb in ("create", "complete", "abort"):
            target = f"/api/2.0/mlflow-artifacts/mpu/{verb}/{path}"
            found.append(Attack(f"multipart {verb} {name}", "POST", target, {"path": "x", "num_parts": 1}))
        found.append(Attack(f"presigned {name}", "GET", f"/api/2.0/mlflow-artifacts/presigned/{path}"))
        query = _in_query(path)
        run = "run_id=0123456789abcdef0123456789abcdef"
        found.append(Attack(f"run's list {name}", "GET", f"{API}/artifacts/list?{run}&path={query}"))
        found.append(Attack(f"run's file {name}", "GET", f"/get-artifact?run_uuid=0&path={query}"))
        found.append(
            Attack(
                f"version's file {name}", "GET", f"/model-versions/get-artifact?name=m&version=1&path={query}"
            )
        )
        model = f"/ajax-api/2.0/mlflow/logged-models/m-1/artifacts/files?artifact_file_path={query}"
        found.append(Attack(f"logged model's file {name}", "GET", model))
    return found


def _in_query(path: str) -> str:
    return path.replace("\\", "%5c").replace("#", "%23").replace("&", "%26")


def addresses() -> list[Attack]:
    """Every address that is not a folder of our store, wherever an address is taken."""
    found = []
    for address in LOCAL_ADDRESSES:
        for key in ("source", "Source", "so_urce"):
            found.append(
                Attack(
                    f"model version from {address} ({key})",
                    "POST",
                    f"{API}/model-versions/create",
                    {"name": "attacked", key: address},
                    role="trainer",
                )
            )
        if address:
            for key in ("artifact_location", "artifactLocation"):
                found.append(
                    Attack(
                        f"experiment at {address} ({key})",
                        "POST",
                        f"{API}/experiments/create",
                        {"name": f"e {address} {key}", key: address},
                        role="trainer",
                    )
                )
            webhook = {
                "name": "w",
                "url": address,
                "events": [{"entity": "MODEL_VERSION", "action": "CREATED"}],
            }
            found.append(Attack(f"webhook to {address}", "POST", f"{API}/webhooks", webhook))
    return found


def bodies() -> list[Attack]:
    """Bodies that two readers could read differently, and bodies where there is none."""
    create = f"{API}/model-versions/create"
    experiment = f"{API}/experiments/create"
    plain = {"Content-Type": "application/json"}
    twice = b'{"name": "a", "source": "models:/m-' + b"0" * 32 + b'", "source": "file:///etc"}'
    smuggled = '{"name": "c", "artifact_location": "file:///etc"}'
    both = {"name": "b", "artifact_location": "", "artifactLocation": "file:///etc"}
    deep = b'{"name":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    unread = frozenset({415})
    zipped = {**plain, "Content-Encoding": "gzip"}
    proxied = "/ajax-api/2.0/mlflow/gateway-proxy?gateway_path=http://169.254.169.254/"
    return [
        Attack("a field named twice", "POST", create, twice, headers=plain),
        Attack("both of a field's names", "POST", experiment, both),
        Attack("JSON within a text", "POST", experiment, json.dumps(smuggled).encode(), headers=plain),
        Attack("UTF-16", "POST", experiment, smuggled.encode("utf-16"), headers=plain),
        Attack("no content type", "POST", experiment, smuggled.encode(), refused=unread),
        Attack("a form", "POST", experiment, b"x", headers={"Content-Type": "text/plain"}, refused=unread),
        Attack("an encoded body", "POST", experiment, gzip.compress(b"{}"), headers=zipped, refused=unread),
        Attack("a list's path in the body", "GET", f"{API}/artifacts/list", {"path": "../outside.txt"}),
        Attack("a deep body", "POST", experiment, deep, headers=plain),
        Attack("delete everything", "DELETE", f"{STORE}/"),
        Attack("gateway", "POST", "/gateway/x/mlflow/invocations", {}),
        Attack("gateway proxy", "GET", proxied),
        Attack("promptlab", "POST", "/ajax-api/2.0/mlflow/runs/create-promptlab-run", {}),
        Attack("assistant", "POST", "/ajax-api/3.0/mlflow/assistant/message", {"message": "ls"}),
        Attack("job", "POST", "/ajax-api/3.0/jobs/", {}),
        Attack("scorer", "POST", "/ajax-api/3.0/mlflow/scorer/invoke", {}),
        Attack("telemetry", "POST", "/v1/traces", b""),
        Attack("trace artifact", "GET", "/ajax-api/2.0/mlflow/get-trace-artifact?request_id=../../outside"),
    ]


def pickles() -> list[Attack]:
    """Every pickled file, through both doors of the artifact proxy."""
    found = []
    for name, (path, content) in PICKLED_FILES.items():
        for base in (STORE, AJAX):
            found.append(Attack(f"{name} ({base[1:5]})", "PUT", f"{base}/{path}", content, role="trainer"))
    return found


def strangers(port: int) -> list[Attack]:
    """Hosts and origins that are not ours, with valid credentials."""
    hosts = (
        "evil.test", f"evil.test:{port}", "127.0.0.1", "localhost", f"localhost:{port}",
        f"127.0.0.1:{port + 1}", f"127.0.0.1:{port}.evil.test", f"127.0.0.1:{port}@evil.test",
        "169.254.169.254", f"[::1]:{port}", "",
        f"0x7f000001:{port}", f"mlflow.test:{port}.", "*",
    )  # fmt: skip
    origins = (
        "https://evil.test", "http://localhost", "http://localhost:3000", f"http://localhost:{port}", "null",
        f"http://127.0.0.1:{port + 1}", "https://mlflow.test.evil.test", "https://evil-mlflow.test",
        "https://mlflow.test:8443", "file://", f"http://[::1]:{port}",
    )  # fmt: skip
    search = f"{API}/registered-models/search"
    found = [Attack(f"host {host!r}", "GET", search, headers={"Host": host}) for host in hosts]
    for origin in origins:
        header = {"Origin": origin}
        found.append(Attack(f"read from {origin}", "GET", search, headers=header))
        found.append(
            Attack(
                f"write from {origin}", "POST", f"{API}/experiments/create", {"name": origin}, headers=header
            )
        )
        asked = {**header, "Access-Control-Request-Method": "POST"}
        found.append(Attack(f"preflight from {origin}", "OPTIONS", search, headers=asked))
    found.append(Attack("another site's image", "GET", search, headers={"Sec-Fetch-Site": "cross-site"}))
    return found
