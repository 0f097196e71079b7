"""What our images are called: the tag of an image is the last commit that changed what it is made of.

So an image that did not change keeps its tag, is not built again, and its containers are not replaced.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from server_tools import places

# Image -> what a change of which makes it another image, as paths below the repository.
_SERVICE = ("ml-model-services/common_service_libs", "ml-model-services/Dockerfile.base_service")
_TRAINING = ("ml-model-development/common_ml_utils",)
_PLATFORM = "mlops-platform-infrastructure"
_ENTRYPOINT = f"{_PLATFORM}/images/entrypoint"
SOURCES: dict[str, tuple[str, ...]] = {
    "feast-cli": ("feature-store-management", _ENTRYPOINT),
    "airflow-worker": ("mlops-orchestration-pipelines", _ENTRYPOINT),
    "fraud-detection-api": ("ml-model-services/services/fraud_detection_api", *_SERVICE),
    "customer-churn-api": ("ml-model-services/services/customer_churn_api", *_SERVICE),
    "movie-recommendation-api": ("ml-model-services/services/movie_recommendation_api", *_SERVICE),
    "decision-page": ("ml-model-services/services/decision_page", *_SERVICE),
    "fraud-training": ("ml-model-development/models/fraud_detection_xgboost", *_TRAINING),
    "churn-training": ("ml-model-development/models/customer_churn_lightgbm", *_TRAINING),
    "recommendation-training": ("ml-model-development/models/movie_recommendation_hybrid", *_TRAINING),
    "reporting": ("ml-reporting-and-monitoring-logic", _ENTRYPOINT),
    "mlflow-server": (f"{_PLATFORM}/images/mlflow_server", _ENTRYPOINT),
    "spark": (f"{_PLATFORM}/images/spark", _ENTRYPOINT),
    "jenkins": (f"{_PLATFORM}/images/jenkins", f"{_PLATFORM}/jenkins_config"),
    "backup": (f"{_PLATFORM}/images/backup", f"{_PLATFORM}/server_tools", _ENTRYPOINT),
}
_HOST = re.compile(r"[a-z0-9.-]+(:[0-9]+)?(/[a-z0-9._-]+)*")


class ReleaseError(Exception):
    """An image can't be named, built, pushed or deployed; the message says why."""


def chosen(names: str) -> list[str]:
    """Split `a,b` into the names of images that exist.

    >>> chosen("spark,backup")
    ['spark', 'backup']
    """
    images = [name for name in names.replace(",", " ").split() if name]
    unknown = sorted(set(images) - set(SOURCES))
    if unknown:
        raise ReleaseError(f"no image {', '.join(unknown)}; there are {', '.join(SOURCES)}")
    return images


def git(*arguments: str, repository: Path = places.REPOSITORY) -> str:
    """Return what git prints, in the repository."""
    ran = subprocess.run(
        ["git", *arguments], cwd=repository, capture_output=True, text=True, timeout=60, check=False
    )
    if ran.returncode:
        raise ReleaseError(f"git {arguments[0]}: {ran.stderr.strip()}")
    return ran.stdout.strip()


def tag(image: str, repository: Path = places.REPOSITORY) -> str:
    """Return an image's tag: twelve digits of the last commit of its sources, `-dirty` beside changes."""
    sources = SOURCES[image]
    commit = git("log", "-1", "--format=%H", "--", *sources, repository=repository)
    if not commit:
        raise ReleaseError(f"{image}: no commit has {', '.join(sources)}")
    dirty = git("status", "--porcelain", "--", *sources, repository=repository)
    return commit[:12] + ("-dirty" if dirty else "")


def reference(image: str, version: str, registry: str = "") -> str:
    """Return the full name of an image.

    >>> reference("spark", "abc", "registry.internal:5000")
    'registry.internal:5000/mlops/spark:abc'
    """
    if registry and not _HOST.fullmatch(registry):
        raise ReleaseError(f"{registry!r} is no registry: give host, port and path, without scheme or user")
    return f"{registry}/mlops/{image}:{version}" if registry else f"mlops/{image}:{version}"


def references(images: Sequence[str], registry: str = "") -> dict[str, str]:
    """Return the full names that these images have at the checked-out commit."""
    return {image: reference(image, tag(image), registry) for image in images}
