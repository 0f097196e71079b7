"""Clean the subscribers' demographics: the Telco file becomes typed columns named as the features are.

`python -m data_transformation_pipelines.python_scripts_feast.clean_user_demographics`

Checks the file against its schema (columns, types, categories, ranges), settles missing totals, reports how
many. `load_subscribers` calls the same functions; as a command it checks a file, leaves the report
`REPORTS_DIR/clean_user_demographics.json` and, with --out, the cleaned rows as Parquet.

Exit 0: clean; 1: the file is not what it must be, or can't be read or written; 2: bad options or settings.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from data_source_connectors.settings import SettingsError, read_settings

from .command_line import BAD_USAGE, OneLineParser, ReportSettings, write_report

COMMAND = "clean_user_demographics"
DEFAULT_SOURCE = Path(__file__).parents[2] / "data" / "subscribers" / "churn_telco_ibm_7043.csv.gz"
LABEL = "churn"

YES_NO = ("No", "Yes")
INTERNET_OPTION = ("No", "Yes", "No internet service")


@dataclass(frozen=True)
class SourceColumn:
    """How a column of the file becomes a feature: name, type, and the values it may take.

    `values` lists the categories of a text; a number lies in [lowest, highest].
    """

    feature: str
    type: pa.DataType
    values: tuple[str, ...] = ()
    lowest: float = 0.0
    highest: float = float("inf")


def _flag(feature: str) -> SourceColumn:
    return SourceColumn(feature, pa.int64(), highest=1)


def _category(feature: str, *values: str) -> SourceColumn:
    return SourceColumn(feature, pa.string(), values)


COLUMNS = {
    "female": _flag("subscriber_is_female"),
    "senior_citizen": _flag("subscriber_is_senior"),
    "partner": _flag("subscriber_has_partner"),
    "dependents": _flag("subscriber_has_dependents"),
    "tenure": SourceColumn("subscriber_tenure_months", pa.int64()),
    "phone_service": _flag("subscriber_has_phone_service"),
    "multiple_lines": _category("subscriber_multiple_lines", *YES_NO, "No phone service"),
    "internet_service": _category("subscriber_internet_service", "DSL", "Fiber optic", "No"),
    "online_security": _category("subscriber_online_security", *INTERNET_OPTION),
    "online_backup": _category("subscriber_online_backup", *INTERNET_OPTION),
    "device_protection": _category("subscriber_device_protection", *INTERNET_OPTION),
    "tech_support": _category("subscriber_tech_support", *INTERNET_OPTION),
    "streaming_tv": _category("subscriber_streaming_tv", *INTERNET_OPTION),
    "streaming_movies": _category("subscriber_streaming_movies", *INTERNET_OPTION),
    "contract": _category("subscriber_contract", "Month-to-month", "One year", "Two year"),
    "paperless_billing": _flag("subscriber_has_paperless_billing"),
    "payment_method": _category(
        "subscriber_payment_method",
        "Electronic check",
        "Mailed check",
        "Bank transfer (automatic)",
        "Credit card (automatic)",
    ),
    "monthly_charges": SourceColumn("subscriber_monthly_charges_usd", pa.float64(), lowest=0.01),
    "total_charges": SourceColumn("subscriber_total_charges_usd", pa.float64()),
}
FEATURES = [column.feature for column in COLUMNS.values()]


class DirtyFileError(Exception):
    """The file is not what its schema says; the message names the column and the first line."""


@dataclass(frozen=True)
class CleanSubscribers:
    """Profiles (grain: subscriber, in file order, columns FEATURES) and, apart, who churned (0, 1)."""

    profiles: pa.Table
    churned: list[int]
    missing_totals_set_to_zero: int

    def report(self) -> dict[str, int]:
        """Return the counts that a report states."""
        return {
            "subscribers": self.profiles.num_rows,
            "churned": sum(self.churned),
            "missing_totals_set_to_zero": self.missing_totals_set_to_zero,
        }


def read_source(path: Path) -> pa.Table:
    """Return the file's columns, typed; DirtyFileError where header or types are not those of the schema."""
    wanted = {LABEL: pa.string()} | {name: column.type for name, column in COLUMNS.items()}
    options = pyarrow.csv.ConvertOptions(
        column_types=wanted, null_values=["", "NA"], strings_can_be_null=True
    )
    try:
        table = pyarrow.csv.read_csv(path, convert_options=options)
    except pa.ArrowInvalid as error:
        raise DirtyFileError(f"{path.name}: {str(error).splitlines()[0]}") from None
    if sorted(table.schema.names) != sorted(wanted):
        raise DirtyFileError(
            f"{path.name}: has the columns {', '.join(table.schema.names)} instead of {', '.join(wanted)}"
        )
    return table.select(list(wanted))


def clean(source: pa.Table) -> CleanSubscribers:
    """Return the cleaned subscribers of a typed source table; DirtyFileError names the first wrong line.

    A missing total charge belongs to a subscriber of tenure 0, who has not been billed yet: it is 0.0, a fact
    and no imputation. At any other tenure it is refused.
    """
    missing_total = pc.is_null(source["total_charges"])
    _refuse(
        pc.and_(missing_total, pc.not_equal(source["tenure"], 0)),
        "total_charges is missing though tenure > 0",
    )
    settled = source.set_column(
        source.schema.get_field_index("total_charges"),
        "total_charges",
        pc.fill_null(source["total_charges"], 0.0),
    )
    for name, column in COLUMNS.items():
        _check(settled[name], name, column)
    _check(settled[LABEL], LABEL, _category(LABEL, *YES_NO))
    return CleanSubscribers(
        settled.select(list(COLUMNS)).rename_columns(FEATURES).combine_chunks(),
        pc.equal(settled[LABEL], "Yes").cast(pa.int64()).to_pylist(),
        pc.sum(missing_total).as_py() or 0,
    )


def _check(values: pa.ChunkedArray, name: str, column: SourceColumn) -> None:
    _refuse(pc.is_null(values), f"{name} is missing")
    if column.values:
        known = pc.is_in(values, value_set=pa.array(column.values))
        _refuse(pc.invert(known), f"{name} is none of {', '.join(column.values)}")
        return
    if pa.types.is_floating(column.type):
        _refuse(pc.invert(pc.is_finite(values)), f"{name} is not finite")
    _refuse(pc.less(values, column.lowest), f"{name} is below {column.lowest:g}")
    _refuse(pc.greater(values, column.highest), f"{name} is above {column.highest:g}")


def _refuse(wrong: pa.ChunkedArray, reason: str) -> None:
    first = pc.index(wrong, True).as_py()
    if first >= 0:
        count = pc.sum(wrong).as_py()
        # Line 1 is the header.
        raise DirtyFileError(f"line {first + 2}: {reason} ({count} such rows)")


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options; leaves with exit 2 and one line where they are wrong."""
    parser = OneLineParser(prog=COMMAND, description="Clean the subscribers' demographics.")
    parser.add_argument(
        "--source", type=Path, default=DEFAULT_SOURCE, metavar="FILE", help="the Telco CSV file"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="write the cleaned rows, label last, as Parquet"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    arguments = parse_arguments(argv)
    try:
        reports_dir = read_settings(ReportSettings).reports_dir
        subscribers = clean(read_source(arguments.source))
        if arguments.out:
            pq.write_table(
                subscribers.profiles.append_column("churned", [subscribers.churned]), arguments.out
            )
        report = subscribers.report()
        path = write_report(reports_dir, f"{COMMAND}.json", {"command": COMMAND, **report})
    except SettingsError as error:
        print(f"{COMMAND}: {error}", file=sys.stderr)
        return BAD_USAGE
    except (DirtyFileError, OSError) as error:
        print(f"{COMMAND}: {error}", file=sys.stderr)
        return 1
    print(f"{log_line(subscribers)}; report {path}")
    return 0


def log_line(subscribers: CleanSubscribers) -> str:
    """Return what was cleaned, for people."""
    report = subscribers.report()
    return (
        f"{report['subscribers']:,} subscribers, {report['churned']:,} churned;"
        f" {report['missing_totals_set_to_zero']} missing total charges at tenure 0 set to 0.0"
    )


if __name__ == "__main__":
    sys.exit(main())
