"""Which raw files a model was trained on, named and kept as DVC does.

DVC calls a file by the MD5 of its bytes, and a folder by the MD5 of the list of its files followed by `.dir`.
The names are computed here without DVC, so that every training carries one; the commands below store the same
files under the same names in the S3 store, and run the stages of `dvc.yaml`:

    python -m common_ml_utils.data_versions repro [STAGE ...]   train and judge what changed
    python -m common_ml_utils.data_versions push | pull         data to, or from, the S3 store
    python -m common_ml_utils.data_versions fetch VERSION OUT   a run's raw files, by its tag dvc_version
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import psycopg

from common_ml_utils.errors import DataError, FeatureStoreError, ModelDevelopmentError, first_line

ROOT = Path(__file__).resolve().parents[1]
FEATURE_STORE = ROOT.parent / "feature-store-management"
WORKSPACE = ROOT / "data_versions"
UNKNOWN = "unknown"
# A project's reports folder -> the raw data its model learns from.
RAW_DATA_OF = {"fraud": "transactions", "churn": "subscribers", "recommendation": "movies"}
TRACKED = {"transactions": "landing/transactions", "subscribers": "subscribers", "movies": "movies"}
SERVICE_OF = {
    "transactions": "fraud_detection_v1",
    "subscribers": "customer_churn_v1",
    "movies": "movie_recommendation_v1",
}
# What the feature store says it has loaded: a training reads that, not the files.
LOADED = {
    "transactions": "SELECT file_name, sha256 FROM raw.loaded_file ORDER BY 1",
    "subscribers": "SELECT count(*), min(snapshot_at)::text, max(known_at)::text FROM raw.subscribers",
    "movies": "SELECT file_name, sha256 FROM raw.loaded_snapshot ORDER BY 1",
}
S3_VARIABLES = ("S3_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
NEEDED_BY_REPRO = (
    "DATA_DIR",
    *(f"FEATURE_STORE_DB_{part}" for part in ("HOST", "PORT", "NAME", "USER", "PASSWORD")),
)


def raw_sources(data_dir: Path) -> dict[str, Path]:
    """Return where the raw files of each kind lie: landed, or kept with the feature store."""
    return {
        "transactions": data_dir / "landing" / "transactions",
        "subscribers": FEATURE_STORE / "data" / "subscribers",
        "movies": FEATURE_STORE / "data" / "movies",
    }


def dvc_version(data_dir: Path, report: str) -> str:
    """Return `<kind>:<DVC's name>` of a project's raw files, e.g. `transactions:6c1f...e2.dir`.

    `unknown` where the project has no raw files of its own or they are not here, as in an image.
    """
    kind = RAW_DATA_OF.get(report)
    source = raw_sources(data_dir).get(kind) if kind else None
    if source is None or not source.exists():
        return UNKNOWN
    return f"{kind}:{dvc_name(source)}"


def dvc_name(path: Path) -> str:
    """Return DVC's name of a file, or of a folder with all that is in it."""
    if path.is_file():
        return _md5(path)
    files = [file for file in path.rglob("*") if file.is_file()]
    listing = sorted(
        ({"md5": _md5(file), "relpath": file.relative_to(path).as_posix()} for file in files),
        key=lambda entry: entry["relpath"],
    )
    text = json.dumps(listing, sort_keys=True).encode()
    return hashlib.md5(text, usedforsecurity=False).hexdigest() + ".dir"


def collect(environment: Mapping[str, str]) -> None:
    """Bring the raw files, and what the feature store has loaded of them, into the workspace of DVC.

    Raises DataError when files are missing, or the feature store has loaded others than those landed: their
    version would name what no training has seen.
    """
    for kind, source in raw_sources(Path(environment["DATA_DIR"])).items():
        if not source.is_dir():
            raise DataError(f"the raw {kind} are not in {source}: land them first")
        loaded = [list(row) for row in _loaded(environment, kind)]
        if kind == "transactions":
            require_loaded(source, {str(name): str(sha256) for name, sha256 in loaded})
        mirror(source, WORKSPACE / TRACKED[kind])
        contract = FEATURE_STORE / "contracts" / "feature_services" / f"{SERVICE_OF[kind]}.yaml"
        state = {"loaded": loaded, "contract": dvc_name(contract) if contract.exists() else UNKNOWN}
        path = WORKSPACE / "feature_store" / f"{kind}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(state, indent=1) + "\n")


def require_loaded(landing: Path, loaded: Mapping[str, str]) -> None:
    """Raise DataError unless the landed files are those that the feature store has loaded."""
    landed = {path.name: path for path in landing.glob("*.parquet")}
    absent = sorted(loaded.keys() - landed.keys())
    different = [
        name
        for name, path in sorted(landed.items())
        if loaded.get(name) != hashlib.sha256(path.read_bytes()).hexdigest()
    ]
    if absent or different:
        raise DataError(
            f"the feature store has not loaded what has landed: {len(different)} files in {landing} are new"
            f" or changed, {len(absent)} are gone (first: {[*different, *absent][0]}):"
            " run run_dbt_feast_models"
        )


def mirror(source: Path, target: Path) -> None:
    """Make `target` hold the same files as `source`; files of the same content are left alone."""
    wanted = {path.relative_to(source): path for path in source.rglob("*") if path.is_file()}
    if target.exists():
        for path in [path for path in target.rglob("*") if path.is_file()]:
            if path.relative_to(target) not in wanted:
                path.unlink()
    for relative, path in wanted.items():
        copy = target / relative
        if not copy.exists() or _md5(copy) != _md5(path):
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.unlink(missing_ok=True)  # it may be a link into DVC's cache
            shutil.copyfile(path, copy)


def repro(environment: Mapping[str, str], stages: Sequence[str]) -> None:
    """Name the raw files as they are now, then run the stages whose inputs changed."""
    require(environment, NEEDED_BY_REPRO)
    collect(environment)
    run_dvc(environment, "add", "--quiet", *(f"data_versions/{folder}" for folder in TRACKED.values()))
    places = {"DATA_DIR": str(WORKSPACE), "REPORTS_DIR": str(WORKSPACE / "reports")}
    run_dvc({**environment, **places}, "repro", *stages)


def push(environment: Mapping[str, str]) -> None:
    """Store every tracked file in the S3 store; what is there already is not sent again."""
    require_store(environment)
    run_dvc(environment, "push")


def pull(environment: Mapping[str, str]) -> None:
    """Bring every tracked file from the S3 store, as `dvc.lock` and the `*.dvc` files name them."""
    require_store(environment)
    if not any(WORKSPACE.rglob("*.dvc")) and not (ROOT / "dvc.lock").exists():
        raise DataError(
            "no data is tracked in this checkout: run repro and push where the data is, then commit"
        )
    # The pipeline's stages that never ran here have nothing to bring.
    run_dvc(environment, "pull", "--allow-missing")


def fetch(environment: Mapping[str, str], version: str, out: Path) -> None:
    """Bring the raw files that a run names in its tag `dvc_version` into a new folder."""
    kind, _, name = version.partition(":")
    if kind not in TRACKED or not name:
        raise DataError(f"{version!r} is no version of raw files, such as transactions:6c1f...e2.dir")
    if out.exists():
        raise DataError(f"{out} exists already")
    require_store(environment)
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder)
        shutil.copytree(ROOT / ".dvc", project / ".dvc", ignore=shutil.ignore_patterns("cache", "tmp"))
        wanted = f"outs:\n- md5: {name}\n  hash: md5\n  path: {kind}\n"
        (project / f"{kind}.dvc").write_text(wanted)
        run_dvc(environment, "pull", "--quiet", root=project)
        shutil.move(project / kind, out)


def require(environment: Mapping[str, str], names: Sequence[str]) -> None:
    """Raise ModelDevelopmentError naming the settings that are not there."""
    if missing := [name for name in names if not environment.get(name)]:
        raise ModelDevelopmentError(
            f"{', '.join(missing)} not set: start the stack (make up-local) and load its stack.env"
        )


def require_store(environment: Mapping[str, str]) -> None:
    """Raise ModelDevelopmentError unless the S3 store answers; the bucket is made if it is not there."""
    require(environment, S3_VARIABLES)
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.session import get_session

    endpoint = environment["S3_ENDPOINT_URL"]
    bucket = remote_bucket()
    client = get_session().create_client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
        region_name=environment.get("AWS_DEFAULT_REGION", "us-east-1"),
        config=Config(connect_timeout=5, read_timeout=20, retries={"total_max_attempts": 2}),
    )
    try:
        if bucket not in [entry["Name"] for entry in client.list_buckets()["Buckets"]]:
            client.create_bucket(Bucket=bucket)
    except (BotoCoreError, ClientError) as error:
        raise ModelDevelopmentError(f"the S3 store at {endpoint} failed: {first_line(error)}") from error


def remote_bucket() -> str:
    """Return the bucket of the remote that `.dvc/config` names."""
    text = (ROOT / ".dvc" / "config").read_text()
    return text.split("s3://", 1)[1].split("/", 1)[0].strip()


def run_dvc(environment: Mapping[str, str], *arguments: str, root: Path = ROOT) -> None:
    """Run DVC on the project; its output goes where ours goes. Raises ModelDevelopmentError when it fails.

    Keys and endpoint reach it through the environment, so that no file holds them.
    """
    if not any((folder / ".git").exists() for folder in (root, *root.parents)):
        (root / ".dvc" / "config.local").write_text("[core]\n    no_scm = true\n")
    own = {
        "DVC_NO_ANALYTICS": "1",
        "DVC_SITE_CACHE_DIR": str(root / ".dvc" / "tmp" / "site"),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", "")]),
        "PYTHONPATH": str(root),
    }
    if endpoint := environment.get("S3_ENDPOINT_URL"):
        own["AWS_ENDPOINT_URL_S3"] = endpoint
    command = [sys.executable, "-m", "dvc", *arguments]
    done = subprocess.run(command, cwd=root, env={**environment, **own}, check=False)  # noqa: S603
    if done.returncode:
        raise ModelDevelopmentError(f"dvc {arguments[0]} failed: see the lines above")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code; a known error is one line on stderr."""
    parser = argparse.ArgumentParser(prog="python -m common_ml_utils.data_versions")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("push", help="data to the S3 store")
    commands.add_parser("pull", help="data from the S3 store")
    stages = commands.add_parser("repro", help="collect raw files, train and judge what changed")
    stages.add_argument("stages", nargs="*", metavar="STAGE", help="of dvc.yaml; default: all")
    fetched = commands.add_parser("fetch", help="the raw files of a run, by its tag dvc_version")
    fetched.add_argument("version")
    fetched.add_argument("out", type=Path)
    options = parser.parse_args(arguments)
    environment = dict(os.environ)
    try:
        if options.command == "repro":
            repro(environment, options.stages)
        elif options.command == "fetch":
            fetch(environment, options.version, options.out)
        else:
            {"push": push, "pull": pull}[options.command](environment)
    except ModelDevelopmentError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


def _loaded(environment: Mapping[str, str], kind: str) -> list[tuple[object, ...]]:
    part = {
        name: environment[f"FEATURE_STORE_DB_{name}"] for name in ("HOST", "PORT", "NAME", "USER", "PASSWORD")
    }
    try:
        with psycopg.connect(
            host=part["HOST"],
            port=int(part["PORT"]),
            dbname=part["NAME"],
            user=part["USER"],
            password=part["PASSWORD"],
            connect_timeout=10,
        ) as connection:
            return connection.execute(LOADED[kind]).fetchall()
    except psycopg.Error as error:
        raise FeatureStoreError(f"what is loaded can't be read: {first_line(error)}") from error


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
