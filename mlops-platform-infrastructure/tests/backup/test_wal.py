"""Whether a row of WAL files is whole, and where its end is."""

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server_tools.backup import wal
from server_tools.backup.errors import DamagedError
from server_tools.backup.wal import SEGMENT_BYTES, Segment

NAMES = [Segment(1, number).name for number in range(254, 259)]


@given(st.integers(1, 2**32 - 1), st.integers(0, 2**40 - 1))
def test_a_segment_is_read_from_its_name(timeline, number):
    assert Segment.parse(Segment(timeline, number).name) == Segment(timeline, number)


@given(st.integers(0, 2**40 - 2))
def test_names_sort_as_the_segments_do(number):
    assert Segment(1, number).name < Segment(1, number + 1).name


def test_everything_from_the_start_is_needed_and_what_came_before_is_not():
    assert wal.needed([*NAMES, "00000002.history"], Segment.parse(NAMES[1])) == NAMES[1:]


def test_the_unfinished_segment_is_needed_unless_it_was_completed():
    partial = f"{NAMES[-1]}.partial"
    assert wal.needed([*NAMES[:-1], partial], Segment.parse(NAMES[0])) == [*NAMES[:-1], partial]
    assert wal.needed([*NAMES, partial], Segment.parse(NAMES[0])) == NAMES


@pytest.mark.parametrize("lost", range(4))
def test_a_hole_is_named(lost):
    left = [name for name in NAMES if name != NAMES[lost]]
    with pytest.raises(DamagedError, match=NAMES[lost]):
        wal.needed(left, Segment.parse(NAMES[0]))


def test_another_timeline_does_not_fill_a_hole():
    with pytest.raises(DamagedError, match=NAMES[0]):
        wal.needed([Segment(2, 254).name], Segment.parse(NAMES[0]))


def test_a_partial_in_the_middle_is_refused():
    with pytest.raises(DamagedError, match="never completed"):
        wal.needed([f"{NAMES[0]}.partial", NAMES[1]], Segment.parse(NAMES[0]))


@pytest.mark.parametrize("size", [0, SEGMENT_BYTES - 1, SEGMENT_BYTES + 1])
def test_a_file_of_another_size_is_named(size):
    with pytest.raises(DamagedError, match=NAMES[1]):
        wal.check_sizes([(NAMES[0], SEGMENT_BYTES), (NAMES[1], size)])


def segment(*pieces: tuple[int, bytes]) -> bytes:
    content = bytearray(SEGMENT_BYTES)
    for offset, piece in pieces:
        content[offset : offset + len(piece)] = piece
    return bytes(content)


def record(length: int) -> bytes:
    return struct.pack("<I", length) + b"\xff" * (length - 4)


def test_an_end_followed_by_zeros_is_plausible():
    assert wal.end_is_plausible(segment((0, b"\1" * 512)), 512)


def test_the_front_part_of_one_record_may_follow():
    assert wal.end_is_plausible(segment((0, b"\1" * 512), (512, record(400)[:300])), 512)


def test_a_whole_record_that_can_t_be_read_was_damaged():
    assert not wal.end_is_plausible(segment((0, b"\1" * 512), (512, record(400))), 512)


def test_records_behind_an_unreadable_one_mean_damage():
    damaged = segment((0, b"\1" * 512), (512, record(400)[:100]), (5000, record(64)))
    assert not wal.end_is_plausible(damaged, 512)


def test_a_length_that_can_t_be_means_damage():
    assert not wal.end_is_plausible(segment((0, b"\1" * 512), (512, b"\2\0\0\0abc")), 512)


def test_a_torn_record_may_cross_pages():
    begun = record(20_000)
    assert wal.end_is_plausible(segment((8000, begun[:192]), (8192, b"\7" * 9000)), 8000)
    assert wal.record_end(8000, 20_000) == 8000 + 20_000 + 3 * 24


def test_damage_before_the_newest_segment_names_the_file(tmp_path: Path):
    files = []
    for number in (5, 6):
        files.append(tmp_path / Segment(1, number).name)
        files[-1].write_bytes(segment())
    with pytest.raises(DamagedError, match=files[0].name):
        wal.check_end(
            files, "error in WAL record at 0/5000100: incorrect resource manager data checksum at 0/5000200"
        )
    assert (
        wal.check_end(files, "invalid record length at 0/6000200: expected at least 24, got 0") == 0x6000200
    )


def test_a_log_may_end_with_a_segment(tmp_path: Path):
    file = tmp_path / Segment(1, 5).name
    file.write_bytes(segment())
    assert (
        wal.check_end([file], 'could not find file "000000010000000000000006": No such file')
        == 6 * SEGMENT_BYTES
    )


def test_what_pg_waldump_says_otherwise_is_not_taken_for_an_end(tmp_path: Path):
    file = tmp_path / Segment(1, 5).name
    file.write_bytes(segment())
    with pytest.raises(DamagedError, match="can't be read"):
        wal.check_end([file], "fatal: something else")
