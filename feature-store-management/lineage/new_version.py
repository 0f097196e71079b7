"""Set a new version of a feature service beside the old one: copies of its files under new names.

The contract, the views that are to change, their tables' models, the on-demand view and the service are
copied, to be edited; what does not change is shared. The old version's files stay as they are, so what it
serves stays too.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from lineage.definitions import Definitions


class NewVersionError(Exception):
    """The new version can't be set up; the message says why. Nothing was written."""


def new_version(definitions: Definitions, service: str, views: Sequence[str]) -> list[Path]:
    """Write the files of the next version of a service in which `views` change; return them."""
    contracts = definitions.contracts
    if service not in contracts:
        known = ", ".join(sorted(contracts))
        raise NewVersionError(f"no feature service is named {service}: there are {known}")
    contract = contracts[service]
    own = [view["name"] for view in contract["views"]]
    if unknown := sorted(set(views) - set(own)):
        raise NewVersionError(f"{service} has no view {', '.join(unknown)}: it has {', '.join(own)}")
    if streamed := sorted(set(views) & _streamed_views(definitions)):
        raise NewVersionError(
            f"{', '.join(streamed)} is kept by a stream too: add its new version by hand, to"
            " contracts/stream_aggregations as well, so that processor and table change together"
        )
    base = re.sub(r"_v\d+$", "", service)
    number = 1 + max(
        int(name.rpartition("_v")[2]) for name in contracts if re.fullmatch(rf"{base}_v\d+", name)
    )
    renames = {service: f"{base}_v{number}"}
    for view in views:
        old, new = view, f"{re.sub(r'_v[0-9]+$', '', view)}_v{number}"
        renames |= {old: new, f"{old}_source": f"{new}_source", f"fct_{old}": f"fct_{new}"}
    if contract["on_demand"]:
        old = contract["on_demand"]["view"]
        renames[old] = f"{re.sub(r'_v[0-9]+$', '', old)}_v{number}"
    files = _copies(definitions, service, views, contract, renames, number)
    if existing := [str(path) for path in files if path.exists()]:
        raise NewVersionError(f"already there: {', '.join(existing)}")
    sources = definitions.root / "feast_repository" / "data_sources.py"
    files[sources] = sources.read_text(encoding="utf-8") + "".join(
        f"\n{_rename(_assignment(sources, f'{view}_source'), renames)}\n" for view in views
    )
    for path, text in files.items():
        path.write_text(text, encoding="utf-8")
    return list(files)


def _streamed_views(definitions: Definitions) -> set[str]:
    return {view["view"] for stream in definitions.streams.values() for view in stream["views"]}


def _copies(  # noqa: PLR0913, PLR0917 (the parts of one version)
    definitions: Definitions,
    service: str,
    views: Sequence[str],
    contract: Mapping[str, object],
    renames: Mapping[str, str],
    number: int,
) -> dict[Path, str]:
    """Return path and text of each file of the new version."""
    repository = definitions.root / "feast_repository"
    contracts = definitions.root / "contracts" / "feature_services"
    text = _rename((contracts / f"{service}.yaml").read_text(encoding="utf-8"), renames)
    text = re.sub(r"^version: \d+$", f"version: {number}", text, flags=re.MULTILINE)
    files = {contracts / f"{renames[service]}.yaml": text}
    on_demand = contract["on_demand"]
    changed = [*views, on_demand["view"]] if isinstance(on_demand, dict) else list(views)
    for view in changed:
        source = repository / "feature_views" / f"{view}.py"
        files[source.with_stem(renames[view])] = _rename(source.read_text(encoding="utf-8"), renames)
    for view in views:
        model = definitions.project.model(f"fct_{view}").path
        new = model.with_stem(renames[f"fct_{view}"])
        files[new] = model.read_text(encoding="utf-8")
        # Names of tests begin with the model's, so they change with it.
        documented = model.with_suffix(".yml").read_text(encoding="utf-8")
        files[new.with_suffix(".yml")] = documented.replace(model.stem, new.stem)
    (defined_in,) = (
        path
        for path in (repository / "feature_services").glob("*.py")
        if re.search(rf"^{service} = ", path.read_text(encoding="utf-8"), re.MULTILINE)
    )
    files[defined_in.with_stem(renames[service])] = _rename(defined_in.read_text(encoding="utf-8"), renames)
    return files


def _rename(text: str, renames: Mapping[str, str]) -> str:
    """Replace whole names.

    >>> _rename("customer_daily, customer_daily_source, my_customer_daily", {"customer_daily": "c2"})
    'c2, customer_daily_source, my_customer_daily'
    """
    names = "|".join(sorted(map(re.escape, renames), key=len, reverse=True))
    return re.sub(rf"\b({names})\b", lambda match: renames[match[1]], text)


def _assignment(path: Path, name: str) -> str:
    """Return the statement of a module that assigns a name; NewVersionError where none does."""
    text = path.read_text(encoding="utf-8")
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign) and [t.id for t in node.targets if isinstance(t, ast.Name)] == [name]:
            return ast.get_source_segment(text, node) or ""
    raise NewVersionError(f"{path.name} assigns no {name}")
