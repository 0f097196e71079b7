"""Fetch a Maven package and all it needs as jars: `fetch_package.py GROUP:NAME:VERSION FOLDER`."""

import shutil
import sys
import tempfile
from pathlib import Path

from pyspark.sql import SparkSession

package, folder = sys.argv[1:]
with tempfile.TemporaryDirectory() as scratch:
    settings = {"spark.jars.packages": package, "spark.jars.ivy": scratch, "spark.ui.enabled": "false"}
    SparkSession.builder.master("local[1]").config(map=settings).getOrCreate().stop()
    jars = sorted(Path(scratch, "jars").glob("*.jar"))
    for jar in jars:
        shutil.copy(jar, folder)
print("\n".join(jar.name for jar in jars))
