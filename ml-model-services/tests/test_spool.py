from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common_service_libs.errors import SpoolUnavailable
from common_service_libs.spool import Spool

MANY = 1 << 20


def reopened(folder: Path) -> tuple[Spool, list[bytes]]:
    spool = Spool(folder, max_bytes=MANY)
    return spool, [payload for _, payload in spool.recover()]


def test_what_was_appended_is_there_after_the_process_ended_without_notice(tmp_path: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path; from common_service_libs.spool import Spool\n"
        "spool = Spool(Path(sys.argv[1]), max_bytes=1 << 20, segment_bytes=100)\n"
        "[spool.append(b'%03d' % i * 10) for i in range(50)]\n"
        "os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "spool")], check=False)
    spool, payloads = reopened(tmp_path / "spool")
    assert payloads == [b"%03d" % i * 10 for i in range(50)]
    spool.close()


@settings(max_examples=60)
@given(st.lists(st.binary(min_size=1, max_size=30), min_size=1, max_size=6), st.data())
def test_a_tail_that_is_cut_off_or_altered_loses_nothing_before_it(
    tmp_path_factory: pytest.TempPathFactory, payloads: list[bytes], data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("spool")
    spool = Spool(folder, max_bytes=MANY)
    positions = [position for payload in payloads for position in spool.append(payload)]
    path = next(folder.rglob("*.wal"))
    spool.close()
    content = path.read_bytes()
    damaged_from = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        path.write_bytes(content[:damaged_from])
    else:
        changed = bytearray(content)
        changed[damaged_from] ^= 0xFF
        path.write_bytes(bytes(changed))
    untouched = sum(position.offset + position.length <= damaged_from for position in positions)
    spool, recovered = reopened(folder)
    assert recovered == payloads[:untouched]
    spool.close()


def test_a_full_spool_refuses_and_writes_nothing(tmp_path: Path) -> None:
    spool = Spool(tmp_path, max_bytes=100)
    spool.append(b"x" * 100)
    assert spool.full
    with pytest.raises(SpoolUnavailable, match="full"):
        spool.append(b"y")
    spool.release(spool.active_segment)
    assert not spool.full
    spool.append(b"y")
    spool.close()


def test_a_full_disk_refuses_and_takes_back_the_half_written_frame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(tmp_path, max_bytes=MANY)
    spool.append(b"before")
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[: len(data) // 2]))
    with pytest.raises(SpoolUnavailable, match="disk is full"):
        spool.append(b"z" * 50)
    monkeypatch.undo()
    (position,) = spool.append(b"after")
    assert spool.read(position) == b"after"
    spool.close()
    assert reopened(tmp_path)[1] == [b"before", b"after"]


def test_a_write_that_fails_is_said_without_losing_the_spool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(tmp_path, max_bytes=MANY)

    def broken(fd: int, data: bytes) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "write", broken)
    with pytest.raises(SpoolUnavailable, match="Input/output error"):
        spool.append(b"z")
    monkeypatch.undo()
    assert spool.read(*spool.append(b"after")) == b"after"
    spool.close()


def test_a_segment_that_cannot_be_begun_is_said_and_the_next_append_tries_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(tmp_path, max_bytes=MANY, segment_bytes=10)
    spool.append(b"0123456789")

    def no_space(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "open", no_space)
    for _ in range(2):
        with pytest.raises(SpoolUnavailable, match="No space left"):
            spool.append(b"refused")
    monkeypatch.undo()
    assert spool.read(*spool.append(b"after")) == b"after"
    spool.close()
    assert reopened(tmp_path)[1] == [b"0123456789", b"after"]


def test_nothing_is_appended_behind_a_frame_that_could_not_be_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(tmp_path, max_bytes=MANY)
    spool.append(b"before")
    real = os.write

    def broken(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[: len(data) // 2]))
    monkeypatch.setattr(os, "ftruncate", broken)
    with pytest.raises(SpoolUnavailable):
        spool.append(b"z" * 50)
    monkeypatch.undo()
    spool.append(b"after")
    spool.close()
    assert reopened(tmp_path)[1] == [b"before", b"after"]


def test_two_processes_never_share_a_folder_and_an_abandoned_one_is_adopted(tmp_path: Path) -> None:
    first, second = Spool(tmp_path, max_bytes=MANY), Spool(tmp_path, max_bytes=MANY)
    first.append(b"of the first")
    second.append(b"of the second")
    first.close()
    second.close()
    spool, payloads = reopened(tmp_path)
    assert sorted(payloads) == [b"of the first", b"of the second"]
    other, nothing = reopened(tmp_path)
    assert nothing == []
    other.close()
    spool.close()


def test_what_is_appended_together_is_one_write_and_read_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    write = os.write
    monkeypatch.setattr("os.write", lambda fd, data: written.append(len(data)) or write(fd, data))
    spool = Spool(tmp_path, max_bytes=MANY)
    positions = spool.append(b"one", b"", b"three" * 100)
    assert len(written) == 1
    assert [spool.read(position) for position in positions] == [b"one", b"", b"three" * 100]
    monkeypatch.setattr("os.write", lambda fd, data: write(fd, data[:-1]))
    with pytest.raises(SpoolUnavailable, match="full"):
        spool.append(b"four", b"five")
    monkeypatch.undo()
    spool.append(b"six")
    spool.close()
    spool, recovered = reopened(tmp_path)
    assert recovered == [b"one", b"", b"three" * 100, b"six"], "all of what comes together, or nothing"
    spool.close()


def test_released_segments_are_deleted(tmp_path: Path) -> None:
    spool = Spool(tmp_path, max_bytes=MANY, segment_bytes=10)
    positions = [spool.append(b"0123456789")[0] for _ in range(3)]
    for position in positions:
        spool.release(position.segment)
    assert spool.size_bytes == 0
    spool.close()
    assert list(tmp_path.rglob("*.wal")) == []
