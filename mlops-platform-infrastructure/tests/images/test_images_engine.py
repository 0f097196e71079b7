"""Our images on a real engine: small, without rights, and their programs answer (`make test-images`)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from image_containers import docker, host, run, running, succeeds, wait_for

from server_tools import images
from server_tools.images import LIMITS, MEGABYTE, OURS, tag, version
from server_tools.places import REPOSITORY

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1800)]

BUILT_HERE = [image for image in OURS if image.name != "jenkins"]
WITH_ENTRYPOINT = [
    "feast-cli", "airflow-worker", "mlflow-server", "spark", "fraud-detection-api", "customer-churn-api",
    "movie-recommendation-api", "decision-page",
]  # fmt: skip
PROCESSOR = "data_transformation_pipelines.stream_jobs_feast.process_transaction_stream"
MONITORING = "advanced_monitoring_scripts"
PARSE_DAGS = """
import sys; sys.path.insert(0, "/app/plugins")
from airflow.dag_processing.dagbag import DagBag
bag = DagBag(dag_folder="/app/dags")
assert len(bag.dags) >= 10, sorted(bag.dags)
print("errors:", bag.import_errors)
"""
# The words a program must say: image, command, words, options.
ANSWERS: list[tuple[str, list[str], str, tuple[str, ...]]] = [
    ("feast-cli", ["feast", "version"], "0.67.0", ()),
    ("feast-cli", ["dbt", "--version"], "1.11", ()),
    ("feast-cli", ["python", "-m", "schema_registry.check"], "contracts hold", ()),
    (
        "feast-cli",
        [
            "python",
            "-m",
            "data_transformation_pipelines.stream_jobs_feast.process_transaction_stream",
            "--help",
        ],
        "--until-caught-up",
        (),
    ),
    ("airflow-worker", ["airflow", "version"], "3.3.2", ("--tmpfs", "/opt/airflow:mode=1777")),
    (
        "airflow-worker",
        ["python", "-c", PARSE_DAGS],
        "errors: {}",
        ("--tmpfs", "/opt/airflow:mode=1777"),
    ),
    ("spark", ["spark-submit", "--version"], "version 4.3.0", ()),
    ("fraud-training", ["python", "-m", "src.train", "--help"], "--as-of", ("--entrypoint", "")),
    ("churn-training", ["python", "-m", "src.train", "--help"], "--as-of", ("--entrypoint", "")),
    ("recommendation-training", ["python", "-m", "src.train", "--help"], "--as-of", ("--entrypoint", "")),
    ("fraud-detection-api", ["python", "-m", "common_service_libs.batch_door", "--help"], "--service", ()),
    ("customer-churn-api", ["python", "-m", "common_service_libs.batch_door", "--help"], "--service", ()),
    ("movie-recommendation-api", ["python", "-c", "import app.main; print('imported')"], "imported", ()),
    ("decision-page", ["python", "-c", "import app.page; print('imported')"], "imported", ()),
    (
        "reporting",
        ["python", "-m", f"{MONITORING}.calculate_concept_drift_scores", "--help"],
        "--model",
        (),
    ),
    (
        "reporting",
        ["python", "-m", f"{MONITORING}.measure_feature_parity", "--help"],
        "export",
        (),
    ),
    ("mlflow-server", ["python", "-m", "mlflow_guard", "--help"], "serve", ()),
    ("backup", ["pg_basebackup", "--version"], "18.", ("--tmpfs", "/backup:mode=1777")),
]
SPARK_JOB = """
from pyspark.sql import SparkSession, functions
spark = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false").getOrCreate()
rows = spark.range(1000).withColumn("k", functions.col("id") % 7)
doubled = functions.udf(lambda value: value * 2, "long")
print("sum", rows.groupBy("k").count().select(functions.sum(doubled("count"))).first()[0])
spark._jvm.java.lang.Class.forName("org.postgresql.Driver")
"""


@pytest.fixture
def image(request: pytest.FixtureRequest) -> str:
    """The name of an image that the engine has; what is missing is built."""
    name: str = request.param
    if images.inspected(host(), tag(name, version())) is None:
        list(images.build(host(), images.chosen([name]), version(), images.git_commit(REPOSITORY)))
    return tag(name, version())


@pytest.mark.parametrize("image", [each.name for each in BUILT_HERE], indirect=True)
def test_an_image_is_small_has_no_rights_and_no_tools_to_build(image: str):
    described = json.loads(docker("image", "inspect", image).stdout)[0]
    name = image.split("/")[1].split(":", maxsplit=1)[0]
    assert described["Size"] <= json.loads(LIMITS.read_text())[name] * MEGABYTE
    user = described["Config"]["User"].split(":")[0]
    assert user.isdigit()
    assert int(user) > 0
    assert described["Config"]["Labels"][images.COMMIT_LABEL]
    tools = "for tool in gcc cc g++ make pip pip3; do command -v $tool; done; true"
    found = run(image, "-c", tools, options=("--entrypoint", "sh"))
    assert found == ""
    print(f"{image}: {described['Size'] / MEGABYTE:.0f} MB")


@pytest.mark.parametrize(
    ("image", "command", "words", "options"), ANSWERS, indirect=["image"], ids=lambda value: str(value)[:40]
)
def test_its_programs_answer_to_a_user_it_does_not_know(
    image: str, command: list[str], words: str, options: tuple[str, ...]
):
    assert words in run(image, *command, options=options)


@pytest.mark.parametrize("image", WITH_ENTRYPOINT, indirect=True)
def test_a_secret_reaches_the_command_from_its_file(image: str, tmp_path: Path):
    secret = tmp_path / "redis_password"
    secret.write_text("from a file\n")
    secret.chmod(0o644)
    said = run(
        image,
        "sh",
        "-c",
        "echo $REDIS_PASSWORD",
        options=("--volume", f"{secret}:/run/secrets/redis_password:ro"),
    )
    assert said == "from a file\n"


@pytest.mark.parametrize("image", ["spark"], indirect=True)
def test_spark_runs_a_job_in_java_and_python(image: str):
    folders = ("--tmpfs", "/tmp:exec,mode=1777", "--tmpfs", "/var/lib/spark:mode=1777")
    assert "sum 2000" in run(image, "python", "-c", SPARK_JOB, options=folders)


@pytest.mark.parametrize("image", ["mlflow-server"], indirect=True)
def test_mlflow_answers_its_health_check(image: str):
    settings = {
        "MLFLOW_BACKEND_STORE_URI": "sqlite:////tmp/mlflow.db",
        "MLFLOW_ARTIFACTS_DESTINATION": "/tmp/artifacts",
        "MLFLOW_SERVER_ALLOWED_HOSTS": "127.0.0.1:5000",
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "k" * 32,
        **{
            f"MLFLOW_{user}_PASSWORD": f"a long password of {user}"
            for user in ("ADMIN", "TRAINER", "SERVICE")
        },
    }
    options = tuple(part for name, value in settings.items() for part in ("--env", f"{name}={value}"))
    both = "python -m mlflow_guard init && exec python -m mlflow_guard serve"
    health = "import urllib.request as u; u.urlopen('http://127.0.0.1:5000/health', timeout=3)"
    with running(image, "sh", "-c", both, options=options) as container:
        seconds = wait_for(container, lambda: succeeds(container, "python", "-c", health), 300)
        print(f"mlflow-server: healthy {seconds:.1f} s after it was started, database made")
        docker("stop", "--time", "20", container)
        assert docker("inspect", "--format", "{{.State.ExitCode}}", container).stdout.strip() in ("0", "143")
