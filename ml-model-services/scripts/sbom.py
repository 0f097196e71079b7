"""What an image of a service consists of, and under which licences: CycloneDX JSON and a report.

`python scripts/sbom.py --requirements services/fraud_detection_api/requirements.txt --out DIR` reads the lock
and the metadata of what is installed, asks no network, and fails (exit code 1) on a package that is not
installed as locked, on a licence of the deny list, and on one that says nothing of its licence.
"""

from __future__ import annotations

import argparse
import html
import re
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL
from packaging.requirements import Requirement

# Strong copyleft and licences that forbid uses; the lesser GPL, which a program may link to, is fine.
DENIED = re.compile(
    r"\bAGPL|(?<![A-Za-z])GPL|\bSSPL|\bBUSL|Business Source|Affero|(?<!Lesser )General Public License"
    r"|Commons Clause|Elastic License|Non-?Commercial|\bCC-BY-NC|Proprietary",
    re.IGNORECASE,
)
LESSER = re.compile(r"\bLGPL|Lesser General Public|Library General Public", re.IGNORECASE)
UNKNOWN = "unknown"


class Package(NamedTuple):
    """One package of an image."""

    name: str
    version: str
    licence: str
    summary: str
    problem: str


def locked(requirements: Path) -> list[Requirement]:
    """Return what a lock asks for on this platform."""
    lines = re.sub(r"\\\n", " ", requirements.read_text()).splitlines()
    found = [line.split(" --hash", 1)[0].strip() for line in lines if line[:1].isalnum()]
    made = [Requirement(line) for line in found]
    return [one for one in made if one.marker is None or one.marker.evaluate()]


def licence_of(about: metadata.PackageMetadata) -> str:
    """Return the licence that a package declares: expression, else classifiers, else its text's name."""
    expression = about.get("License-Expression")
    if expression:
        return str(expression)
    classifiers = [
        text.rpartition(" :: ")[2]
        for text in about.get_all("Classifier") or []
        if text.startswith("License ::") and text != "License :: OSI Approved"
    ]
    if classifiers:
        return " AND ".join(sorted(classifiers))
    text = str(about.get("License") or "").strip()
    return text.splitlines()[0][:80] if text and text.upper() != "UNKNOWN" else UNKNOWN


def refused(licence: str) -> bool:
    """Return whether a licence is on the deny list: every alternative of it, where it offers several.

    >>> [refused(name) for name in ("GPL-3.0-only", "LGPL-3.0-only", "MIT OR GPL-2.0", "MIT AND AGPL-3.0")]
    [True, False, False, True]
    """
    alternatives = re.split(r"\s+OR\s+", licence, flags=re.IGNORECASE)
    return all(
        any(
            DENIED.search(part) is not None and LESSER.search(part) is None
            for part in re.split(r"\s+AND\s+", alternative, flags=re.IGNORECASE)
        )
        for alternative in alternatives
    )


def packages(requirements: Path) -> list[Package]:
    """Return the packages of a lock, with what is wrong with each."""
    found = []
    for requirement in locked(requirements):
        try:
            about = metadata.metadata(requirement.name)
        except metadata.PackageNotFoundError:
            found.append(Package(requirement.name, "", UNKNOWN, "", "is not installed"))
            continue
        version, licence = about["Version"], licence_of(about)
        problem = ""
        if not requirement.specifier.contains(version, prereleases=True):
            problem = f"{version} is installed, the lock says {requirement.specifier}"
        elif licence == UNKNOWN:
            problem = "names no licence"
        elif refused(licence):
            problem = "has a licence that is refused"
        found.append(Package(requirement.name, version, licence, str(about.get("Summary") or ""), problem))
    return sorted(found)


def bom(name: str, found: Sequence[Package]) -> str:
    """Return the packages as a CycloneDX document."""
    document, licences = Bom(), LicenseFactory()
    document.metadata.component = Component(name=name, type=ComponentType.APPLICATION, bom_ref=name)
    for package in found:
        document.components.add(
            Component(
                name=package.name,
                version=package.version,
                type=ComponentType.LIBRARY,
                bom_ref=f"{package.name}=={package.version}",
                purl=PackageURL("pypi", name=package.name, version=package.version),
                description=package.summary or None,
                licenses=[licences.make_from_string(package.licence)],
            )
        )
    document.register_dependency(document.metadata.component, document.components)
    return str(JsonV1Dot6(document).output_as_string(indent=1))


def report(name: str, found: Sequence[Package]) -> str:
    """Return the licences as a page: what is wrong first, then how many packages have which, then all."""
    counts: dict[str, int] = {}
    for package in found:
        counts[package.licence] = counts.get(package.licence, 0) + 1

    def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
        cells = "".join(
            "<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows
        )
        return f"<table><tr>{''.join(f'<th>{title}</th>' for title in head)}</tr>{cells}</table>"

    wrong = [(package.name, package.problem) for package in found if package.problem]
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Licences of {html.escape(name)}</title>'
        "<style>body{font:15px sans-serif;margin:2em}td,th{padding:.2em 1em;text-align:left}</style>"
        f"<h1>Licences of {html.escape(name)}</h1><p>{len(found)} packages, {len(wrong)} refused.</p>"
        + (table(("package", "why it is refused"), wrong) if wrong else "")
        + "<h2>By licence</h2>"
        + table(("licence", "packages"), sorted(counts.items(), key=lambda item: -item[1]))
        + "<h2>Packages</h2>"
        + table(("package", "version", "licence", "what it is"), [package[:4] for package in found])
        + "</html>\n"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Write both documents; exit code 1 and a line for each package that is refused."""
    parser = argparse.ArgumentParser(description="SBOM and licence report of a service's image.")
    parser.add_argument("--requirements", type=Path, required=True, help="the service's lock")
    parser.add_argument("--out", type=Path, required=True, help="the folder for both documents")
    given = parser.parse_args(arguments)
    name = given.requirements.resolve().parent.name
    found = packages(given.requirements)
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / f"{name}.cdx.json").write_text(bom(name, found) + "\n")
    (given.out / f"{name}.licences.html").write_text(report(name, found))
    wrong = [f"{package.name}: {package.problem}" for package in found if package.problem]
    print(f"{name}: {len(found)} packages, {len(wrong)} refused")
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
