"""A definition changes only as a new version: what the lock notices, and how a version is made."""

import doctest
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from common_test_utils import ROOT_DIR

import lineage.definitions
import lineage.new_version
from feature_contract import parse_contract
from lineage.definitions import Definitions
from lineage.new_version import NewVersionError, new_version
from lineage.versions import LOCK, LockError, accept, check, main, present_parts

MODELS = Path("data_transformation_pipelines/dbt_project_feast/models")
CUSTOMER_DAILY = MODELS / "marts/fct_customer_daily.sql"
TOTALS = MODELS / "intermediate/int_customer_daily_totals.sql"
STREAM = Path("contracts/stream_aggregations/transactions_today.yaml")
CONTRACT = Path("contracts/feature_services/fraud_detection_v1.yaml")


@pytest.fixture(scope="module")
def lock() -> str:
    """The lock of the definitions as they are, without a past."""
    services = present_parts(Definitions())
    entries = {name: {"parts": parts, "reasons": ["as they are"]} for name, parts in services.items()}
    return json.dumps({"format_version": 1, "services": entries})


@pytest.fixture
def copy(tmp_path: Path, lock: str) -> Path:
    """A working copy of the definitions, locked as they are."""
    for folder in ("contracts", "feast_repository", "data_transformation_pipelines/dbt_project_feast"):
        shutil.copytree(ROOT_DIR / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / LOCK).write_text(lock)
    return tmp_path


def edit(old: str, new: str) -> Callable[[str], str]:
    def change(text: str) -> str:
        assert old in text
        return text.replace(old, new)

    return change


def changes(root: Path, path: Path, change: Callable[[str], str]) -> list[str]:
    """Return what the lock says of a changed file."""
    (root / path).write_text(change((root / path).read_text()))
    return [str(difference) for difference in check(Definitions(root))]


def test_doctests_hold():
    for module in (lineage.definitions, lineage.new_version):
        assert doctest.testmod(module).failed == 0


def test_every_definition_is_the_one_locked_for_its_version():
    """Red here? `python -m lineage.versions --check` says what changed and what to do."""
    assert [str(difference) for difference in check(Definitions())] == []


def test_a_copy_is_as_locked(copy: Path):
    assert check(Definitions(copy)) == []


@pytest.mark.parametrize(
    ("path", "change"),
    [
        (CUSTOMER_DAILY, edit("\nfinal as (", "\n\n  -- the end\nfinal   AS (")),
        (MODELS / "staging/stg_transactions.sql", edit("select * from {{", "SELECT *\n    FROM {{")),
        (MODELS / "marts/fct_customer_daily.yml", edit("Grain: customer", "Grain: each customer")),
        (CONTRACT, lambda text: "# What else there is to say\n" + text),
        (STREAM, edit("# days since", "# whole days since")),
    ],
    ids=["comment and format", "case", "documentation", "contract's comment", "stream's comment"],
)
def test_what_changes_no_value_is_no_change(copy: Path, path: Path, change: Callable[[str], str]):
    assert changes(copy, path, change) == []


@pytest.mark.parametrize(
    ("path", "change", "part"),
    [
        (CUSTOMER_DAILY, edit("between 7 ", "between 6 "), "model fct_customer_daily"),
        (TOTALS, edit("count(*)", "count(*) + 0"), "model int_customer_daily_totals"),
        (MODELS / "staging/stg_transactions.sql", edit("* 100", "* 1000"), "model stg_transactions"),
        (MODELS / "../macros/utc_midnight.sql", edit("'UTC'", "'Asia/Saigon'"), "model fct_customer_daily"),
        (MODELS / "../seeds/label_maturity.csv", edit("fraud,7,1", "fraud,8,2"), "seed label_maturity"),
        (CONTRACT, edit("hour(tx_timestamp) <= 6", "hour(tx_timestamp) <= 5"), "contract fraud_detection_v1"),
        (CONTRACT, edit("ttl_seconds: 86400", "ttl_seconds: 86401"), "contract fraud_detection_v1"),
        (
            STREAM,
            edit("utc_offset_hours: 0", "utc_offset_hours: 7"),
            "stream transactions_today of customer_today",
        ),
    ],
    ids=["window", "intermediate", "staging", "macro", "seed", "expression", "ttl", "stream"],
)  # fmt: skip
def test_what_could_change_a_value_is_named(copy: Path, path: Path, change: Callable[[str], str], part: str):
    found = changes(copy, path, change)
    assert f"fraud_detection_v1: {part} changed under the same version" in found
    assert not [line for line in found if line.startswith("customer_churn_v1: ")]


def test_a_table_that_is_read_now_or_no_more_is_named(copy: Path):
    seen = changes(
        copy,
        MODELS / "marts/fct_subscriber_profile.sql",
        edit("{{ ref('stg_subscribers') }}", "{{ ref('stg_subscribers') }}, {{ ref('stg_movies') }}"),
    )
    assert "customer_churn_v1: model stg_movies belongs to it now" in seen


def test_a_published_version_does_not_vanish_and_a_new_one_is_locked(copy: Path):
    (copy / CONTRACT).rename(copy / CONTRACT.with_stem("fraud_detection_v99"))
    assert [str(difference) for difference in check(Definitions(copy))] == [
        "fraud_detection_v1: the service is gone, though its version is published",
        "fraud_detection_v99: the service is not locked yet",
    ]


def test_accepting_keeps_the_reason_at_the_service_that_changed(copy: Path):
    path = copy / MODELS / "marts/fct_subscriber_profile.sql"
    path.write_text(path.read_text().replace("with subscribers as", "with people as").replace(
        "from subscribers", "from people"
    ))  # fmt: skip
    found = accept(Definitions(copy), "a step is named otherwise")
    assert {difference.service for difference in found} == {"customer_churn_v1"}
    services = json.loads((copy / LOCK).read_text())["services"]
    assert services["customer_churn_v1"]["reasons"] == ["as they are", "a step is named otherwise"]
    assert services["fraud_detection_v1"]["reasons"] == ["as they are"]
    assert check(Definitions(copy)) == []


def test_a_lock_that_cannot_be_read_is_named(copy: Path):
    for text, message in (("{", "versions.lock.json"), ('{"format_version": 9}', "format version 9")):
        (copy / LOCK).write_text(text)
        with pytest.raises(LockError, match=message):
            check(Definitions(copy))


def test_a_new_version_stands_beside_the_old_one_which_stays_as_it_was(copy: Path):
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    taken = {int(path.stem.rpartition("_v")[2]) for path in copy.glob("contracts/*/fraud_detection_v*.yaml")}
    new = f"v{max(taken) + 1}"
    files = new_version(Definitions(copy), "fraud_detection_v1", ["customer_daily", "terminal_daily"])
    sources = copy / "feast_repository/data_sources.py"
    assert [path for path, content in before.items() if path.read_bytes() != content] == [sources]
    assert sources.read_bytes().startswith(before[sources])
    assert {path.relative_to(copy).as_posix() for path in files} - {"feast_repository/data_sources.py"} == {
        f"contracts/feature_services/fraud_detection_{new}.yaml",
        f"feast_repository/feature_services/fraud_detection_{new}.py",
        f"feast_repository/feature_views/customer_daily_{new}.py",
        f"feast_repository/feature_views/terminal_daily_{new}.py",
        f"feast_repository/feature_views/transaction_on_demand_{new}.py",
        *(f"{MODELS}/marts/fct_customer_daily_{new}.{kind}" for kind in ("sql", "yml")),
        *(f"{MODELS}/marts/fct_terminal_daily_{new}.{kind}" for kind in ("sql", "yml")),
    }
    text = (copy / CONTRACT.with_stem(f"fraud_detection_{new}")).read_text()
    contract = parse_contract(text, "the new one")
    assert [view.name for view in contract.views] == [
        *(f"customer_daily_{new}", "customer_today", f"terminal_daily_{new}", "terminal_today"),
    ]
    assert contract.on_demand is not None
    assert contract.on_demand.view == f"transaction_on_demand_{new}"
    definitions = Definitions(copy)
    assert [str(difference) for difference in check(definitions)] == [
        f"fraud_detection_{new}: the service is not locked yet"
    ]
    parts, old = definitions.parts(f"fraud_detection_{new}"), definitions.parts("fraud_detection_v1")
    assert parts[f"model fct_customer_daily_{new}"] == old["model fct_customer_daily"]
    assert parts["model int_customer_daily_totals"] == old["model int_customer_daily_totals"]
    next_one = new_version(Definitions(copy), f"fraud_detection_{new}", [f"customer_daily_{new}"])
    assert copy / f"feast_repository/feature_views/customer_daily_v{max(taken) + 2}.py" in next_one


@pytest.mark.parametrize(
    ("service", "views", "message"),
    [
        ("fraud_detection_v0", ["customer_daily"], "no feature service is named fraud_detection_v0"),
        ("fraud_detection_v1", ["subscriber_profile"], "has no view subscriber_profile"),
        ("fraud_detection_v1", ["customer_today"], "customer_today is kept by a stream too"),
    ],
)
def test_a_version_that_cannot_be_made_writes_nothing(
    copy: Path, service: str, views: list[str], message: str
):
    before = {path for path in copy.rglob("*") if path.is_file()}
    with pytest.raises(NewVersionError, match=message):
        new_version(Definitions(copy), service, views)
    assert {path for path in copy.rglob("*") if path.is_file()} == before


def test_the_command_says_what_is_wrong(capsys: pytest.CaptureFixture[str]):
    assert main(["--new-version", "nothing_v1", "--views", "x"]) == 2
    assert "no feature service is named nothing_v1" in capsys.readouterr().err
