"""What every loader reads before it starts: database, schema, reports folder and the delay of its label."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from data_source_connectors.database_connector import DatabaseSettings
from data_source_connectors.settings import read_settings

from .command_line import ReportSettings
from .label_maturity import LabelMaturity, read_label_maturity
from .raw_tables import RawSettings


@dataclass(frozen=True)
class LoadSettings:
    """A loader's settings."""

    database: DatabaseSettings
    raw: RawSettings
    reports_dir: Path
    maturity: LabelMaturity

    @classmethod
    def read(cls, label_name: str) -> LoadSettings:
        """Return the settings for a loader of that label; raises SettingsError or LabelMaturityError."""
        return cls(
            read_settings(DatabaseSettings),
            read_settings(RawSettings),
            read_settings(ReportSettings).reports_dir,
            read_label_maturity(label_name),
        )
