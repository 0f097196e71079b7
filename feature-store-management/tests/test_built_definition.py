"""A model that changed is noticed before days of two definitions stand in one table."""

from __future__ import annotations

from pathlib import Path

import pytest
from common_test_utils import Rehearsal

from backfill.built_definition import changed, definitions, remember


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name, text in {
        "models/marts/a.sql": "select 1",
        "models/b.sql": "select 2",
        "macros/m.sql": "one",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_a_definition_is_the_text_of_a_model_and_of_all_macros(project: Path) -> None:
    before = definitions(project)
    assert sorted(before) == ["a", "b"]
    (project / "models/b.sql").write_text("select 3")
    after = definitions(project)
    assert [name for name in before if before[name] != after[name]] == ["b"]
    (project / "macros/m.sql").write_text("two")
    assert all(definitions(project)[name] != after[name] for name in after)


@pytest.mark.integration
def test_what_changed_since_the_tables_were_built_is_named(project: Path, tmp_path: Path) -> None:
    rehearsal = Rehearsal(tmp_path)
    connection, prefix, now = rehearsal.connection, rehearsal.prefix, definitions(project)
    try:
        assert changed(connection, prefix, now) == [], "nothing stands yet"
        connection.execute(f"create schema {prefix}intermediate")
        connection.execute(f"create table {prefix}intermediate.built_days (model text)")
        assert changed(connection, prefix, now) == ["a", "b"], "tables of nobody knows which definition"
        remember(connection, prefix, now)
        assert changed(connection, prefix, now) == []
        assert changed(connection, prefix, now | {"new": "x"}) == [], "a new model changes no other"
        assert changed(connection, prefix, now | {"b": "other"}) == ["b"]
        remember(connection, prefix, now | {"b": "other"})
        assert changed(connection, prefix, now | {"b": "other"}) == []
    finally:
        rehearsal.close()
