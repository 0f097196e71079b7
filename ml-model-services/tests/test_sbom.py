from __future__ import annotations

import importlib.util
import json
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
LOCKS = sorted((ROOT / "services").glob("*_api/requirements.txt"))


@pytest.fixture(scope="module")
def sbom() -> ModuleType:
    spec = importlib.util.spec_from_file_location("sbom", ROOT / "scripts" / "sbom.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.parent.name)
def test_every_package_of_a_service_stands_in_its_sbom_under_a_licence(
    sbom: ModuleType, lock: Path, tmp_path: Path
) -> None:
    sbom.main(["--requirements", str(lock), "--out", str(tmp_path)])
    name = lock.parent.name
    document: dict[str, Any] = json.loads((tmp_path / f"{name}.cdx.json").read_text())
    assert document["bomFormat"] == "CycloneDX"
    names = {component["name"] for component in document["components"]}
    assert names == {requirement.name for requirement in sbom.locked(lock)} >= {"fastapi", "pyjwt", "hiredis"}
    for component in document["components"]:
        assert component["purl"].startswith("pkg:pypi/")
        assert component["version"] == metadata.version(component["name"])
        assert component["licenses"]
    page = (tmp_path / f"{name}.licences.html").read_text()
    assert f"{len(names)} packages, 0 refused" in page


def test_what_is_not_installed_as_locked_is_refused(
    sbom: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lock = tmp_path / "some_api" / "requirements.txt"
    lock.parent.mkdir()
    lock.write_text(
        "fastapi==0.0.1 \\\n    --hash=sha256:00\nno-such-package==1.0\n"
        "winonly==1 ; sys_platform == 'win32'\n"
    )
    with pytest.raises(SystemExit) as ended:
        sbom.main(["--requirements", str(lock), "--out", str(tmp_path)])
    said = str(ended.value)
    assert "fastapi: " in said
    assert "the lock says ==0.0.1" in said
    assert "no-such-package: is not installed" in said
    assert "winonly" not in said
    assert "2 packages, 2 refused" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("licence", "refused"),
    [
        ("MIT", False),
        ("GPL-3.0-or-later", True),
        ("GNU General Public License v3 (GPLv3)", True),
        ("GNU Lesser General Public License v3 (LGPLv3)", False),
        ("LGPL-3.0-only", False),
        ("AGPL-3.0", True),
        ("GNU Affero General Public License v3", True),
        ("Apache-2.0 OR GPL-2.0-only", False),
        ("Apache-2.0 AND GPL-2.0-only", True),
        ("Other/Proprietary License", True),
        ("CC-BY-NC-4.0", True),
        ("BUSL-1.1", True),
    ],
)
def test_the_deny_list_knows_names_and_expressions(sbom: ModuleType, licence: str, refused: bool) -> None:
    assert sbom.refused(licence) is refused


def test_a_package_that_names_no_licence_is_refused(
    sbom: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = tmp_path / "requirements.txt"
    lock.write_text(f"fastapi=={metadata.version('fastapi')}\n")
    monkeypatch.setattr(sbom, "licence_of", lambda about: sbom.UNKNOWN)
    assert [package.problem for package in sbom.packages(lock)] == ["names no licence"]
    monkeypatch.setattr(sbom, "licence_of", lambda about: "AGPL-3.0")
    assert [package.problem for package in sbom.packages(lock)] == ["has a licence that is refused"]
