"""The database connector without a database: settings, secrets, failed connections, the binary stream."""

import struct
import traceback
from datetime import date, datetime

import numpy as np
import pytest

from data_source_connectors.binary_copy import SIGNATURE, TRAILER, Column, encode
from data_source_connectors.database_connector import DatabaseSettings, DatabaseUnavailableError, connect
from data_source_connectors.settings import SettingsError, read_settings

SECRET = "pa55-word-of-the-test"


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name, value in {
        "HOST": "127.0.0.1",
        "PORT": "1",
        "NAME": "f",
        "USER": "u",
        "PASSWORD": SECRET,
    }.items():
        monkeypatch.setenv(f"FEATURE_STORE_DB_{name}", value)
    return monkeypatch


def test_settings_come_from_the_environment(environment: pytest.MonkeyPatch) -> None:
    settings = read_settings(DatabaseSettings)
    assert (settings.host, settings.port, settings.name, settings.user) == ("127.0.0.1", 1, "f", "u")
    assert settings.password.get_secret_value() == SECRET


def test_the_password_is_not_shown(environment: pytest.MonkeyPatch) -> None:
    settings = read_settings(DatabaseSettings)
    assert SECRET not in repr(settings) + str(settings) + settings.address + settings.model_dump_json()


def test_missing_and_wrong_settings_are_named_without_their_values(environment: pytest.MonkeyPatch) -> None:
    environment.delenv("FEATURE_STORE_DB_HOST")
    environment.delenv("FEATURE_STORE_DB_PASSWORD")
    environment.setenv("FEATURE_STORE_DB_PORT", "seventy")
    with pytest.raises(SettingsError) as error:
        read_settings(DatabaseSettings)
    message = str(error.value)
    assert "FEATURE_STORE_DB_HOST is not set" in message
    assert "FEATURE_STORE_DB_PASSWORD is not set" in message
    assert "FEATURE_STORE_DB_PORT: " in message
    assert "seventy" not in message
    assert "\n" not in message


@pytest.mark.parametrize("port", ["0", "65536", "-1"])
def test_a_port_out_of_range_is_refused(environment: pytest.MonkeyPatch, port: str) -> None:
    environment.setenv("FEATURE_STORE_DB_PORT", port)
    with pytest.raises(SettingsError, match="FEATURE_STORE_DB_PORT: "):
        read_settings(DatabaseSettings)


def test_a_failed_connection_names_the_address_and_hides_the_password(
    environment: pytest.MonkeyPatch,
) -> None:
    with (
        pytest.raises(DatabaseUnavailableError, match=r"PostgreSQL u@127\.0\.0\.1:1/f: ") as error,
        connect(read_settings(DatabaseSettings), application_name="test"),
    ):
        pass
    assert SECRET not in "".join(traceback.format_exception(error.value))


def test_a_password_inside_a_driver_message_is_masked(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("FEATURE_STORE_DB_HOST", f"/{SECRET}")  # a folder for sockets that is not there
    settings = read_settings(DatabaseSettings)
    with pytest.raises(DatabaseUnavailableError) as error, connect(settings, application_name="test"):
        pass
    assert "***" in str(error.value).removeprefix(f"no connection to PostgreSQL {settings.address}")
    assert SECRET not in str(error.value).removeprefix(f"no connection to PostgreSQL {settings.address}")


def test_a_binary_stream_holds_each_row_as_postgresql_reads_it() -> None:
    columns = [
        Column("id", "bigint", np.array([-2, 3], dtype=np.int64)),
        Column("flag", "smallint", np.array([0, 1], dtype=np.int16)),
        Column("amount", "double precision", np.array([0.1, 220.0])),
        Column("day", "date", np.array([date(2000, 1, 2), date(1999, 12, 31)], dtype="datetime64[D]")),
        Column(
            "moment",
            "timestamptz",
            np.array([datetime(2000, 1, 1, 0, 0, 1), datetime(1999, 12, 31)], dtype="datetime64[us]"),  # noqa: DTZ001
        ),
    ]
    row = struct.Struct(">h iq ih id ii iq")
    expected = row.pack(5, 8, -2, 2, 0, 8, 0.1, 4, 1, 8, 1_000_000) + row.pack(
        5, 8, 3, 2, 1, 8, 220.0, 4, -1, 8, -86_400_000_000
    )
    assert encode(columns) == SIGNATURE + expected + TRAILER


def test_a_stream_without_rows_is_header_and_trailer() -> None:
    assert encode([Column("id", "bigint", np.array([], dtype=np.int64))]) == SIGNATURE + TRAILER


@pytest.mark.parametrize(
    ("column", "error"),
    [
        (Column("c", "smallint", np.array([1], dtype=np.int64)), TypeError),
        (Column("c", "bigint", np.array([1.5])), TypeError),
        (Column("c", "double precision", np.array(["x"])), TypeError),
        (Column("c", "timestamptz", np.array(["2020-01-01"], dtype="datetime64[ns]")), TypeError),
        (Column("c", "date", np.array([1], dtype=np.int64)), TypeError),
        (Column("c", "timestamptz", np.array(["NaT"], dtype="datetime64[us]")), ValueError),
        (Column("c", "date", np.array(["NaT"], dtype="datetime64[D]")), ValueError),
        (Column("c", "date", np.array([2**40], dtype="int64").astype("datetime64[D]")), ValueError),
    ],
    ids=lambda value: f"{value.type} of {value.values}" if isinstance(value, Column) else "",
)
def test_values_that_do_not_fit_their_type_are_refused(column: Column, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"^c: "):
        encode([column])


def test_columns_of_different_lengths_are_refused() -> None:
    one, two = np.zeros(1, dtype=np.int64), np.zeros(2, dtype=np.int64)
    with pytest.raises(ValueError, match="different lengths"):
        encode([Column("a", "bigint", one), Column("b", "bigint", two)])
