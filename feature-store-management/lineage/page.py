"""Where every served feature comes from, as a page: raw column, feature table, expression, service, model.

`python -m lineage.page [--out FOLDER]` writes `index.html` and `lineage.json` to `REPORTS_DIR/lineage`. Only
files of the working copy are read: contracts, dbt models, stream aggregations, and the policies beside this
root, which say what model and service use a feature service.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lineage.columns import ROWS, Column, Parents, ancestors, column_parents, raw_ancestors
from lineage.definitions import Definitions

TEMPLATE = Path(__file__).with_name("page_template.html")
POLICIES = "ml-model-services/services/*/policies/*.yaml"
FEATURES_SCHEMA = "features"


def names_read(expression: str) -> set[str]:
    """Return the names an on-demand expression reads; the names of functions are none.

    >>> sorted(names_read("coalesce(total, 0) + if_same_day(today, the_day, t)"))
    ['t', 'the_day', 'today', 'total']
    """
    tree = ast.parse(expression.strip(), mode="eval")
    functions = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and id(node) not in functions}


def consumers(repository: Path) -> dict[str, list[dict[str, str]]]:
    """Return by feature service which model and which service use it, as the policies say."""
    found: dict[str, list[dict[str, str]]] = {}
    for path in sorted(repository.glob(POLICIES)):
        policy = yaml.safe_load(path.read_text(encoding="utf-8"))
        use = {"model": policy["model"], "service": path.parents[1].name}
        found.setdefault(policy["feature_service"], []).append(use)
    return found


def feature_lineage(definitions: Definitions, parents: Parents) -> dict[str, Any]:
    """Return services with their features, each with the fields, request values and columns it comes from."""
    streams = {
        view["view"]: view["topic"] for stream in definitions.streams.values() for view in stream["views"]
    }
    used_by = consumers(definitions.root.parent)
    services = []
    for name, contract in definitions.contracts.items():
        fields = {field["name"]: view["name"] for view in contract["views"] for field in view["fields"]}
        expressions = {
            feature["name"]: feature["expression"]
            for feature in (contract["on_demand"]["features"] if contract["on_demand"] else [])
        }
        services.append(
            {
                "name": name,
                "version": contract["version"],
                "entities": [entity["name"] for entity in contract["entities"]],
                "used_by": used_by.get(name, []),
                "streams": {
                    view["name"]: streams[view["name"]]
                    for view in contract["views"]
                    if view["name"] in streams
                },
                "features": [
                    _feature(feature, expressions.get(feature["name"]), fields, parents)
                    for feature in contract["features"]
                ],
            }
        )
    return {"services": services}


def _feature(
    feature: Mapping[str, Any], expression: str | None, fields: Mapping[str, str], parents: Parents
) -> dict[str, Any]:
    read = sorted(names_read(expression)) if expression else [feature["name"]]
    columns = {name: Column(FEATURES_SCHEMA, f"fct_{fields[name]}", name) for name in read if name in fields}
    return {
        "name": feature["name"],
        "type": feature["type"],
        "source": feature["source"],
        "expression": " ".join(expression.split()) if expression else None,
        "request": [name for name in read if name not in fields],
        "fields": [
            {
                "view": fields[name],
                "name": name,
                "raw": sorted(map(str, raw_ancestors(column, parents))),
                "through": _by_schema(ancestors(column, parents)),
            }
            for name, column in columns.items()
        ],
    }


def _by_schema(columns: Iterable[Column]) -> dict[str, list[str]]:
    """Return the columns by the layer they stand in; counted rows of a step in between are left out."""
    layers: dict[str, list[str]] = {}
    for column in sorted(columns):
        if column.name != ROWS or column.schema == "raw":
            layers.setdefault(column.schema, []).append(f"{column.table}.{column.name}")
    return layers


def render(lineage: Mapping[str, Any]) -> str:
    """Return the page: one HTML file with everything in it."""
    data = json.dumps(lineage, separators=(",", ":")).replace("</", "<\\/")
    return TEMPLATE.read_text(encoding="utf-8").replace("/*LINEAGE*/null", data)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m lineage.page", description="Write the lineage of features."
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="instead of REPORTS_DIR/lineage")
    folder = parser.parse_args(argv).out
    if folder is None:
        if not os.environ.get("REPORTS_DIR"):
            print("lineage: REPORTS_DIR is not set, and no --out is given", file=sys.stderr)
            return 2
        folder = Path(os.environ["REPORTS_DIR"]) / "lineage"
    definitions = Definitions()
    lineage = feature_lineage(definitions, column_parents(definitions))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "lineage.json").write_text(json.dumps(lineage, indent=1) + "\n", encoding="utf-8")
    (folder / "index.html").write_text(render(lineage), encoding="utf-8")
    features = sum(len(service["features"]) for service in lineage["services"])
    print(f"lineage of {features} features of {len(lineage['services'])} services in {folder / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
