"""What the commands of this package share at their edge: one-line errors, dates, sizes, the report file."""

from __future__ import annotations

import argparse
import json
import os
from datetime import date
from pathlib import Path
from typing import Any, NoReturn

from pydantic_settings import BaseSettings

BAD_USAGE = 2


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose complaint is one line, with exit code 2."""

    def error(self, message: str) -> NoReturn:
        """Print the complaint and leave."""
        self.exit(BAD_USAGE, f"{self.prog}: {message} (--help lists the options)\n")


class ReportSettings(BaseSettings):
    """Where reports go: environment variable `REPORTS_DIR`."""

    reports_dir: Path


def iso_date(text: str) -> date:
    """Return the date that YYYY-MM-DD states, for argparse."""
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no date: write YYYY-MM-DD") from None


def whole_number(text: str) -> int:
    """Return the whole number >= 1 that the text states, for argparse."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 up")
    return number


def write_report(folder: Path, name: str, report: dict[str, Any]) -> Path:
    """Write a report as JSON, replacing the former one in one step; return its path."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(report, indent=1, default=str) + "\n")
    draft.replace(path)
    return path
