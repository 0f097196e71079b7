from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common_service_libs.resilience.hot_snapshot import HotSnapshot, SnapshotFile, read_rows, write_rows

pytestmark = pytest.mark.anyio
REPLY = [b"one", None, b"three"]


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def key(entity: int | str) -> tuple[str, int | str]:
    return "plan", entity


def test_the_entity_used_longest_ago_makes_room() -> None:
    snapshot = HotSnapshot(3)
    for entity in (1, 2, 3):
        snapshot.keep([key(entity)], [REPLY])
    assert snapshot.get(key(1)) is not None
    snapshot.keep([key(4)], [REPLY])
    assert [entity for (_, entity), _ in snapshot.rows()] == [3, 1, 4]
    assert snapshot.get(key(2)) is None


def test_a_row_says_when_it_was_read_and_is_the_newest_reply() -> None:
    clock = Clock()
    snapshot = HotSnapshot(3, clock=clock)
    snapshot.keep([key("a")], [REPLY])
    clock.now += 5
    snapshot.keep([key("a")], [[b"new"]])
    assert snapshot.get(key("a")) == (1005.0, b"new")
    assert snapshot.get(("another plan", "a")) is None


def test_what_was_read_too_long_ago_is_not_known_any_more() -> None:
    clock = Clock()
    snapshot = HotSnapshot(3, max_age=10, clock=clock)
    snapshot.keep([key(1)], [REPLY])
    clock.now += 10
    assert snapshot.get(key(1)) is not None
    clock.now += 0.001
    assert snapshot.get(key(1)) is None


def test_a_row_of_any_form_is_bounded() -> None:
    snapshot = HotSnapshot(3, max_row_bytes=100)
    snapshot.keep_if_small(key(1), [b"x" * 60, None, b"x" * 40])
    snapshot.keep_if_small(key(2), [b"x" * 60, None, b"x" * 41])
    assert len(snapshot) == 1


rows = st.dictionaries(
    st.tuples(st.sampled_from(["plan", "other"]), st.integers(0, 2**63 - 1) | st.text(max_size=5)),
    st.lists(st.none() | st.binary(max_size=20), max_size=6).map(lambda reply: (1000.5, *reply)),
    max_size=30,
).map(lambda found: list(found.items()))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows, st.data())
def test_a_file_gives_back_what_was_written_and_never_anything_else(
    tmp_path: Path, written: list, data: st.DataObject
) -> None:
    path = tmp_path / "snapshot.bin"
    write_rows(path, written)
    assert list(read_rows(path)) == written
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    assert list(read_rows(path)) == [], "one frame holds them all, and it is whole or not at all"


def test_only_the_frames_before_a_broken_one_are_read(tmp_path: Path) -> None:
    path = tmp_path / "snapshot.bin"
    written = [(key(entity), (1000.0, b"%d" % entity)) for entity in range(600)]
    write_rows(path, written)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert list(read_rows(path)) == written[:512]


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "snapshot.bin"
    write_rows(path, [(key(1), (1.0, b"old"))])

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("common_service_libs.resilience.hot_snapshot.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_rows(path, [(key(2), (1.0, b"new"))])
    assert list(read_rows(path)) == [(key(1), (1.0, b"old"))]
    assert list(tmp_path.iterdir()) == [path]
    assert path.stat().st_mode & 0o077 == 0


async def test_the_next_process_has_what_the_last_one_knew_and_is_fit_for_use(tmp_path: Path) -> None:
    clock = Clock()
    before = HotSnapshot(10, clock=clock)
    file = SnapshotFile(before, tmp_path / "snapshot.bin")
    file.open()
    before.keep([key(entity) for entity in range(5)], [REPLY] * 5)
    await file.close()
    clock.now += 50
    after = HotSnapshot(3, max_age=100, clock=clock)
    file = SnapshotFile(after, tmp_path / "snapshot.bin")
    file.open()
    await file.close()
    assert [entity for (_, entity), _ in after.rows()] == [2, 3, 4]
    assert after.get(key(4)) == (1000.0, *REPLY)
    clock.now += 100
    late = HotSnapshot(3, max_age=100, clock=clock)
    assert late.restore(read_rows(tmp_path / "snapshot.bin")) == 0
