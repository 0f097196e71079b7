"""Times as they are recorded."""

from __future__ import annotations

from datetime import UTC, datetime

from hypothesis import example, given
from hypothesis import strategies as st

from common_service_libs.decision_record import rfc3339


@given(st.floats(-62135596800, 253402300799, allow_nan=False) | st.floats(-2, 2))
@example(-0.0)
@example(0.9999995)
@example(-0.0000005)
@example(1732233600.0000005)
@example(1732233599.9999998)
def test_a_time_is_written_as_datetime_writes_it(seconds: float) -> None:
    written = datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds")
    assert rfc3339(seconds) == written.replace("+00:00", "Z")
