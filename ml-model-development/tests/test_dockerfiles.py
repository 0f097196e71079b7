"""What every training image keeps to, read from the Dockerfiles."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCKERFILES = sorted(ROOT.glob("models/*/Dockerfile.train"))
MODELS = sorted(path.parent.name for path in ROOT.glob("models/*/requirements.txt"))


def instructions(path: Path) -> list[tuple[str, str]]:
    """Return (instruction, arguments), continued lines joined and comments left out."""
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [
        (word.upper(), " ".join(rest.split()))
        for word, _, rest in (line.strip().partition(" ") for line in joined.splitlines() if line.strip())
    ]


def of(path: Path, word: str) -> list[str]:
    return [rest for name, rest in instructions(path) if name == word]


def problems(path: Path) -> list[str]:
    """Return what is wrong with a Dockerfile, in words."""
    model, text, runs = path.parent.name, path.read_text(), of(path, "RUN")
    order = [name for name, _ in instructions(path)]
    last_work = max(i for i, name in enumerate(order) if name in ("RUN", "COPY", "FROM"))
    allowed = {f"models/{model}/requirements.txt", "common_ml_utils", f"models/{model}/src"}
    copied = {source for words in of(path, "COPY") if "--from=" not in words for source in words.split()[:-1]}
    checks = {
        "an image has no pinned tag": all(pinned(image) for image in images(path)),
        "one stage only: the tools that install stay in the image": len(images(path)) > 1,
        "runs as root": of(path, "USER")[-1:] not in ([], ["root"], ["0"]),
        "something is run or copied after USER": "USER" in order and order.index("USER") > last_work,
        "ADD fetches or unpacks; COPY says what it does": "ADD" not in order,
        f"copies {sorted(copied - allowed)}": copied <= allowed,
        "pip installs without hashes": all(
            "--require-hashes" in run for run in runs if re.search(r"pip\b.* install", run)
        ),
        "fetches something by its address": not any(re.search("curl|wget|://", run) for run in runs),
        "installs recommended packages": all(
            "--no-install-recommends" in run for run in runs if "apt-get install" in run
        ),
        "a secret stands in a layer": not re.search(
            r"(?im)^(ARG|ENV)\b.*(password|secret|token|api_?key|access_key)", text
        ),
        "does not know its commit": "GIT_COMMIT" in of(path, "ARG"),
        "a shell stands between the container's signals and the command": all(
            words.startswith("[") for words in [*of(path, "ENTRYPOINT"), *of(path, "CMD")]
        ),
    }
    return [problem for problem, kept in checks.items() if not kept]


def images(path: Path) -> list[str]:
    """Return the base images, with the defaults of the arguments put in."""
    defaults = dict(argument.split("=", 1) for argument in of(path, "ARG") if "=" in argument)
    return [
        re.sub(r"\$\{(\w+)\}", lambda match: defaults.get(match[1], ""), words.split()[0])
        for words in of(path, "FROM")
    ]


def pinned(image: str) -> bool:
    """Say whether an image has a tag that begins with a version."""
    return re.fullmatch(r"[a-z][\w./-]*:\d[\w.-]*(@sha256:[0-9a-f]{64})?", image) is not None


def test_every_model_has_an_image() -> None:
    assert [path.parent.name for path in DOCKERFILES] == MODELS


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.parent.name)
def test_an_image_is_small_in_what_it_may_do(path: Path) -> None:
    assert problems(path) == []


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ("python:3.11-slim-bookworm", "python:latest", "no pinned tag"),
        ("python:3.11-slim-bookworm", "python", "no pinned tag"),
        ("USER 10001", "USER root", "runs as root"),
        ("USER 10001", "", "runs as root"),
        ("COPY common_ml_utils /app/common_ml_utils", "COPY . /app", "copies"),
        ("COPY common_ml_utils", "ADD https://example.org/x", "ADD fetches"),
        ("--require-hashes", "", "without hashes"),
        ("ARG GIT_COMMIT", "ARG GIT_COMMIT\nENV DB_PASSWORD=x", "a secret"),
        ('CMD ["src.train"]', "CMD src.train", "a shell"),
    ],
)
def test_a_spoiled_dockerfile_is_found_out(old: str, new: str, found: str, tmp_path: Path) -> None:
    spoiled = tmp_path / DOCKERFILES[0].parent.name / "Dockerfile.train"
    spoiled.parent.mkdir()
    text = DOCKERFILES[0].read_text()
    assert old in text
    spoiled.write_text(text.replace(old, new))
    assert any(found in problem for problem in problems(spoiled)), problems(spoiled)


def test_the_build_context_holds_only_what_the_images_copy() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] not in ("", "#")]
    assert lines[0] == "*"
    assert {line for line in lines if line.startswith("!")} == {
        "!common_ml_utils",
        "!models/*/src",
        "!models/*/requirements.txt",
    }
