"""The follower of Redis against a server that speaks replication, and what it leaves."""

import hashlib
import json
import socket
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from server_tools.backup import redis_stream
from server_tools.backup.errors import AmbiguousError, DamagedError
from server_tools.backup.redis_stream import BASE, HASHES, INCREMENT, Generation, encode

SNAPSHOT = b"REDIS0011" + bytes(range(256)) * 40
COMMANDS = encode("SET", "a", "1") + encode("SET", "b", "2")


def generation(folder: Path, name: str, keys: int = 10) -> Path:
    path = folder / name
    path.mkdir()
    (path / BASE).write_bytes(SNAPSHOT)
    (path / INCREMENT).write_bytes(COMMANDS)
    digest = hashlib.sha256(COMMANDS).hexdigest()
    (path / HASHES).write_text(f"0 {len(COMMANDS)} {digest}\n")
    notes = Generation("id", 0, 1.0, len(SNAPSHOT), hashlib.sha256(SNAPSHOT).hexdigest(), keys)
    redis_stream.write_notes(path, notes)
    return path


def test_a_whole_generation_is_written_as_redis_own_folder(tmp_path):
    found = generation(tmp_path, "1")
    usable = redis_stream.check(found)
    redis_stream.write_data_folder(found, tmp_path / "data", usable)
    folder = tmp_path / "data" / "appendonlydir"
    assert (folder / "appendonly.aof.1.base.rdb").read_bytes() == SNAPSHOT
    assert (folder / "appendonly.aof.1.incr.aof").read_bytes() == COMMANDS
    assert "appendonly.aof.1.incr.aof seq 1 type i" in (folder / "appendonly.aof.manifest").read_text()


@pytest.mark.parametrize("file", [BASE, INCREMENT])
def test_a_changed_byte_is_found_and_the_file_named(tmp_path, file):
    found = generation(tmp_path, "1")
    content = bytearray((found / file).read_bytes())
    content[len(content) // 2] ^= 1
    (found / file).write_bytes(content)
    with pytest.raises(DamagedError, match=file):
        redis_stream.check(found)


def test_a_cut_file_is_found_and_named(tmp_path):
    found = generation(tmp_path, "1")
    (found / INCREMENT).write_bytes(COMMANDS[:-1])
    with pytest.raises(DamagedError, match=f"{INCREMENT} was cut"):
        redis_stream.check(found)


def test_what_came_after_the_last_hash_counts(tmp_path):
    found = generation(tmp_path, "1")
    with (found / INCREMENT).open("ab") as stream:
        stream.write(b"*1\r\n$4\r\nPI")
    assert redis_stream.check(found) == len(COMMANDS) + 10


def test_an_emptied_server_is_not_restored_in_place_of_the_lost_one(tmp_path):
    folders = [generation(tmp_path, "1", keys=1000), generation(tmp_path, "2", keys=3)]
    with pytest.raises(AmbiguousError, match="1: 1000 keys"):
        redis_stream.choose(folders, None)
    assert redis_stream.choose(folders, "1") == folders[0]
    assert redis_stream.choose(folders[:1], None) == folders[0]


class Server:
    """Plays a Redis server: each connection that asks to replicate gets the next script."""

    def __init__(self, *scripts: bytes) -> None:
        self.scripts = list(scripts)
        self.asked: list[bytes] = []
        self.acknowledged = b""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _talk(self, connection: socket.socket) -> None:
        while data := connection.recv(65536):
            if b"DBSIZE" in data:
                connection.sendall(b":7\r\n")
            elif b"PSYNC" in data:
                self.asked.append(data)
                script = self.scripts.pop(0) if self.scripts else b"-LOADING\r\n"
                connection.sendall(script)
                if b"CUT" in script:
                    connection.close()
                    return
            elif b"ACK" in data:
                self.acknowledged = data
            else:
                connection.sendall(b"+OK\r\n")


def follow(settings, server: Server, tmp_path: Path) -> redis_stream.Follower:
    followed = replace(settings, redis_host="127.0.0.1", redis_port=server.port, redis_password="x")
    follower = redis_stream.Follower(followed, tmp_path / "heartbeat")
    threading.Thread(target=follower.run, daemon=True).start()
    return follower


def until(ready) -> None:
    end = time.monotonic() + 8
    while not ready():
        assert time.monotonic() < end, "nothing came"
        time.sleep(0.02)


def increments(settings) -> list[bytes]:
    return [(each / INCREMENT).read_bytes() for each in redis_stream.generations(settings.redis)]


@pytest.mark.parametrize(
    "copy",
    [b"\n\n$%d\r\n%s" % (len(SNAPSHOT), SNAPSHOT), b"$EOF:" + b"e" * 40 + b"\r\n" + SNAPSHOT + b"e" * 40],
    ids=["from disk", "diskless"],
)
def test_a_copy_and_what_follows_are_kept(settings, tmp_path, copy):
    # Of a diskless copy the end is known only when nothing comes after it.
    commands = b"" if copy.startswith(b"$EOF") else COMMANDS
    server = Server(b"+FULLRESYNC abc 100\r\n" + copy + commands)
    follow(settings, server, tmp_path)
    until(lambda: increments(settings) == [commands])
    (found,) = redis_stream.generations(settings.redis)
    assert (found / BASE).read_bytes() == SNAPSHOT
    until(lambda: str(100 + len(commands)).encode() in server.acknowledged)
    assert redis_stream.check(found) == len(commands)


def test_after_a_broken_connection_the_same_generation_goes_on(settings, tmp_path):
    first = b"+FULLRESYNC abc 100\r\n$%d\r\n%s%s" % (len(SNAPSHOT), SNAPSHOT, encode("CUT"))
    server = Server(first, b"+CONTINUE\r\n" + COMMANDS)
    follow(settings, server, tmp_path)
    until(lambda: increments(settings) == [encode("CUT") + COMMANDS])
    assert str(100 + len(encode("CUT")) + 1).encode() in server.asked[1]
    redis_stream.check(redis_stream.generations(settings.redis)[0])


def test_a_server_that_comes_back_empty_takes_nothing_away(settings, tmp_path):
    first = b"+FULLRESYNC abc 100\r\n$%d\r\n%s%s" % (len(SNAPSHOT), SNAPSHOT, encode("CUT"))
    server = Server(first, b"+FULLRESYNC other 0\r\n$5\r\nempty")
    follow(settings, server, tmp_path)
    until(lambda: len(increments(settings)) == 2)
    old, new = redis_stream.generations(settings.redis)
    assert (old / BASE).read_bytes() == SNAPSHOT
    assert (new / BASE).read_bytes() == b"empty"


def test_a_killed_follower_asks_again_for_what_has_no_hash(settings, tmp_path):
    settings.redis.mkdir()
    found = generation(settings.redis, "001", keys=1)
    notes = json.loads((found / redis_stream.NOTES).read_text()) | {
        "started": time.time(),
        "base_offset": 100,
    }
    (found / redis_stream.NOTES).write_text(json.dumps(notes))
    with (found / INCREMENT).open("ab") as stream, (found / HASHES).open("a") as hashes:
        stream.write(b"torn")
        hashes.write("12 3")
    server = Server(b"+CONTINUE\r\n" + COMMANDS)
    follow(settings, server, tmp_path)
    until(lambda: increments(settings) == [COMMANDS * 2])
    assert str(100 + len(COMMANDS) + 1).encode() in server.asked[0]
    until(lambda: len((found / HASHES).read_text().splitlines()) == 2)
    assert redis_stream.check(found) == 2 * len(COMMANDS)
