"""Redis: a follower that keeps what the server sends to a replica, as files a server can start from.

A replica would be simpler and would lose everything: when the lost server comes back empty, its replica
empties itself. The follower writes each full synchronization into a folder of its own (a generation):
`base.rdb`, then every later command in `incr.aof` - the replication stream has the very form of Redis'
append-only file. Hashes of both stand beside them.
"""

from __future__ import annotations

import hashlib
import json
import os
import select
import shutil
import socket
import time
from dataclasses import asdict, dataclass
from io import RawIOBase
from pathlib import Path
from typing import BinaryIO, TextIO

from server_tools.backup.errors import AmbiguousError, BackupError, DamagedError
from server_tools.backup.settings import Settings

SYNC_SECONDS = 0.25
SILENCE_SECONDS = 30.0
ACK_SECONDS = 1.0
COUNT_SECONDS = 5.0
READ_BYTES = 1 << 20
KEEP_GENERATIONS = 3
BASE, INCREMENT, HASHES, NOTES = "base.rdb", "incr.aof", "incr.sha256", "generation.json"
_ENDING_BYTES = 40


@dataclass
class Generation:
    """What stands about a generation beside its data."""

    replication_id: str
    base_offset: int
    started: float
    base_bytes: int = 0
    base_sha256: str = ""
    keys: int = 0


def encode(*words: str) -> bytes:
    r"""Return a command in Redis' protocol.

    >>> encode("PING")
    b'*1\r\n$4\r\nPING\r\n'
    """
    parts = [word.encode() for word in words]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)


class _Connection:
    """A connection that speaks to the server as a replica does."""

    def __init__(self, settings: Settings) -> None:
        self.socket = socket.create_connection((settings.redis_host, settings.redis_port), timeout=5)
        self.socket.settimeout(SILENCE_SECONDS)
        self._buffer = b""
        if settings.redis_password:
            self.ask("AUTH", settings.redis_password)

    def ask(self, *words: str) -> str:
        """Return the reply's line; raises BackupError for an error."""
        self.socket.sendall(encode(*words))
        reply = self.line()
        if reply.startswith("-"):
            raise BackupError(f"Redis refuses {words[0]}: {reply[1:]}")
        return reply

    def line(self) -> str:
        """Return the next line that says something; a server that prepares a copy sends empty ones."""
        while True:
            found, end, rest = self._buffer.partition(b"\n")
            if end:
                self._buffer = rest
                text = found.strip().decode(errors="replace")
                if text:
                    return text
            else:
                self._buffer += self._receive()

    def take(self) -> bytes:
        """Return what has come, at least one byte."""
        taken, self._buffer = self._buffer, b""
        return taken or self._receive()

    def put_back(self, data: bytes) -> None:
        """Let `data` be taken again."""
        self._buffer = data + self._buffer

    def ready(self, seconds: float) -> bool:
        """Tell whether something can be taken, waiting up to `seconds`."""
        return bool(self._buffer) or bool(select.select([self.socket], [], [], seconds)[0])

    def _receive(self) -> bytes:
        data = self.socket.recv(READ_BYTES)
        if not data:
            raise ConnectionResetError("the server closed the connection")
        return data


class Follower:
    """Follows one server, reconnects, and begins a generation whenever the server can't continue the last."""

    def __init__(self, settings: Settings, heartbeat: Path) -> None:
        self._settings = settings
        self._heartbeat = heartbeat
        self._folder: Path | None = None
        self._generation: Generation | None = None

    def run(self) -> None:
        """Follow for ever."""
        self._settings.redis.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._continue_newest()
        said = ""
        while True:
            self._heartbeat.touch()
            try:
                self._follow()
                said = ""
            except (OSError, BackupError) as error:
                if str(error) != said:
                    print(f"waiting: {error}", flush=True)
                said = str(error)
                time.sleep(0.25)

    def _continue_newest(self) -> None:
        complete = generations(self._settings.redis)
        if not complete:
            return
        self._folder = complete[-1]
        notes = read_notes(self._folder)
        try:
            self._trim(self._folder)
        except DamagedError as error:
            print(f"a new generation begins: {error}", flush=True)
            return
        self._generation = notes

    def _trim(self, folder: Path) -> None:
        """Cut what came after the last hash (the follower was killed): it is asked for again."""
        hashed = check_increment(folder, whole=False)
        (folder / HASHES).write_text("".join(f"{line}\n" for line in _hashes(folder)), encoding="ascii")
        with (folder / INCREMENT).open("r+b") as stream:
            stream.truncate(hashed)

    def _follow(self) -> None:
        connection = _Connection(self._settings)
        try:
            connection.ask("PING")
            connection.ask("REPLCONF", "capa", "eof", "capa", "psync2")
            asked = ("?", "-1")
            generation, folder = self._generation, self._folder
            if (
                generation
                and folder
                and time.time() - generation.started < self._settings.redis_rotate_seconds
            ):
                offset = generation.base_offset + (folder / INCREMENT).stat().st_size
                asked = (generation.replication_id, str(offset + 1))
            answer = connection.ask("PSYNC", *asked).split()
            if answer[0] == "+FULLRESYNC":
                folder, generation = self._begin(connection, answer[1], int(answer[2]))
            elif answer[0] == "+CONTINUE" and generation and folder:
                if len(answer) > 1:
                    generation.replication_id = answer[1]
                    write_notes(folder, generation)
                print(f"continuing {folder.name}", flush=True)
            else:
                raise BackupError(f"Redis answers PSYNC with {answer[0]}")
            self._folder, self._generation = folder, generation
            self._stream(connection, folder, generation)
        finally:
            connection.socket.close()

    def _begin(self, connection: _Connection, replication_id: str, offset: int) -> tuple[Path, Generation]:
        """Receive a whole copy into a new folder, which gets its name when it is complete."""
        started = time.time()
        new = self._settings.redis / ".new"
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(mode=0o700)
        generation = Generation(replication_id, offset, started)
        with (new / BASE).open("wb") as stream:
            size, digest = self._copy(connection, stream)
            stream.flush()
            os.fsync(stream.fileno())
        generation.base_bytes, generation.base_sha256 = size, digest
        (new / INCREMENT).touch(mode=0o600)
        (new / HASHES).touch(mode=0o600)
        write_notes(new, generation)
        folder = self._settings.redis / f"{int(started * 1000):015d}"
        new.rename(folder)
        print(f"new generation {folder.name}: {size} bytes", flush=True)
        self._drop_old()
        return folder, generation

    def _copy(self, connection: _Connection, stream: BinaryIO) -> tuple[int, str]:
        header = connection.line()
        if header.startswith("-"):
            raise BackupError(f"Redis can't give a copy: {header[1:]}")
        digest = hashlib.sha256()
        size = 0
        if header.startswith("$EOF:"):
            ending = header[5:].encode()
            held = b""
            while True:
                held += connection.take()
                self._heartbeat.touch()
                if held.endswith(ending):
                    held = held[:-_ENDING_BYTES]
                    stream.write(held)
                    digest.update(held)
                    return size + len(held), digest.hexdigest()
                sure, held = held[:-_ENDING_BYTES], held[-_ENDING_BYTES:]
                stream.write(sure)
                digest.update(sure)
                size += len(sure)
        expected = int(header[1:])
        while size < expected:
            data = connection.take()
            self._heartbeat.touch()
            mine, more = data[: expected - size], data[expected - size :]
            connection.put_back(more)
            stream.write(mine)
            digest.update(mine)
            size += len(mine)
        return size, digest.hexdigest()

    def _stream(self, connection: _Connection, folder: Path, generation: Generation) -> None:
        """Append every command; on disk, hashed and acknowledged four times a second."""
        size = (folder / INCREMENT).stat().st_size
        synced, counted, acknowledged, heard = size, 0.0, 0.0, time.monotonic()
        digest = hashlib.sha256()
        last_sync = time.monotonic()
        with (folder / INCREMENT).open("ab", buffering=0) as stream, (folder / HASHES).open("a") as hashes:
            try:
                while True:
                    if connection.ready(SYNC_SECONDS):
                        data = connection.take()
                        stream.write(data)
                        digest.update(data)
                        size += len(data)
                        heard = time.monotonic()
                    now = time.monotonic()
                    if size > synced and now - last_sync >= SYNC_SECONDS:
                        self._sync(stream, hashes, synced, size, digest.hexdigest())
                        synced, digest, last_sync = size, hashlib.sha256(), now
                    if now - acknowledged >= ACK_SECONDS:
                        offset = generation.base_offset + synced
                        connection.socket.sendall(encode("REPLCONF", "ACK", str(offset)))
                        acknowledged = now
                        self._heartbeat.touch()
                    if now - counted >= COUNT_SECONDS:
                        generation.keys = self._count_keys()
                        write_notes(folder, generation)
                        counted = now
                    if now - heard > SILENCE_SECONDS:
                        raise BackupError("Redis says nothing")
                    if time.time() - generation.started >= self._settings.redis_rotate_seconds:
                        return
            finally:
                if size > synced:
                    self._sync(stream, hashes, synced, size, digest.hexdigest())

    @staticmethod
    def _sync(stream: RawIOBase, hashes: TextIO, start: int, end: int, digest: str) -> None:
        os.fsync(stream.fileno())
        hashes.write(f"{start} {end} {digest}\n")
        hashes.flush()

    def _count_keys(self) -> int:
        connection = _Connection(self._settings)
        try:
            return int(connection.ask("DBSIZE")[1:])
        finally:
            connection.socket.close()

    def _drop_old(self) -> None:
        for folder in generations(self._settings.redis)[:-KEEP_GENERATIONS]:
            if time.time() - read_notes(folder).started > self._settings.redis_rotate_seconds:
                shutil.rmtree(folder)


def generations(folder: Path) -> list[Path]:
    """Return the complete generations below `folder`, oldest first."""
    return (
        sorted(path for path in folder.glob("[0-9]*") if (path / NOTES).exists()) if folder.is_dir() else []
    )


def read_notes(folder: Path) -> Generation:
    """Return what stands about a generation."""
    return Generation(**json.loads((folder / NOTES).read_text(encoding="utf-8")))


def write_notes(folder: Path, generation: Generation) -> None:
    """Write what is known about a generation, in one step."""
    temporary = folder / f".{NOTES}.new"
    temporary.write_text(json.dumps(asdict(generation)), encoding="utf-8")
    os.replace(temporary, folder / NOTES)


def choose(folders: list[Path], name: str | None) -> Path:
    """Return the newest generation, or the one called `name`.

    Raises AmbiguousError when the newest has less than half of the keys of the one before: a server that lost
    its data and was started empty would otherwise be restored in its place.
    """
    if name:
        found = [folder for folder in folders if folder.name == name]
        if not found:
            raise BackupError(f"there is no generation {name}")
        return found[0]
    if not folders:
        raise BackupError("there is no generation of Redis")
    keys = {folder: read_notes(folder).keys for folder in folders}
    if len(folders) > 1 and keys[folders[-1]] * 2 < keys[folders[-2]]:
        listed = ", ".join(f"{folder.name}: {keys[folder]} keys" for folder in folders)
        raise AmbiguousError(f"the newest generation is much smaller, say which with --generation: {listed}")
    return folders[-1]


def check_increment(folder: Path, *, whole: bool) -> int:
    """Return how many bytes of the commands may be used; raises DamagedError with the file's name.

    What has a hash must have it. With `whole`, what came after the last hash (a quarter of a second) counts
    as well; where that ends within a command, a starting server cuts it off (aof-load-truncated).
    """
    path = folder / INCREMENT
    data_bytes = path.stat().st_size
    position = 0
    with path.open("rb") as stream:
        for line in _hashes(folder):
            start, end, expected = line.split(" ")
            if int(start) != position or int(end) > data_bytes:
                raise DamagedError(f"{path} was cut: {data_bytes} bytes, written were at least {end}")
            if hashlib.sha256(stream.read(int(end) - position)).hexdigest() != expected:
                raise DamagedError(f"{path} is damaged between byte {start} and {end}")
            position = int(end)
    return data_bytes if whole else position


def _hashes(folder: Path) -> list[str]:
    """Return the lines that were written whole."""
    return (folder / HASHES).read_text(encoding="ascii").split("\n")[:-1]


def check(folder: Path) -> int:
    """Check a generation and return the usable bytes of its commands; raises DamagedError."""
    notes = read_notes(folder)
    digest = hashlib.sha256()
    with (folder / BASE).open("rb") as stream:
        while block := stream.read(READ_BYTES):
            digest.update(block)
    if digest.hexdigest() != notes.base_sha256:
        raise DamagedError(f"{folder / BASE} is damaged")
    return check_increment(folder, whole=True)


def write_data_folder(generation: Path, target: Path, usable: int) -> None:
    """Write a generation as the folder from which Redis 7 and later starts (appendonlydir)."""
    folder = target / "appendonlydir"
    folder.mkdir(mode=0o700, parents=True)
    shutil.copyfile(generation / BASE, folder / "appendonly.aof.1.base.rdb")
    with (
        (generation / INCREMENT).open("rb") as source,
        (folder / "appendonly.aof.1.incr.aof").open("wb") as copy,
    ):
        left = usable
        while left and (block := source.read(min(READ_BYTES, left))):
            copy.write(block)
            left -= len(block)
    manifest = "file appendonly.aof.1.base.rdb seq 1 type b\nfile appendonly.aof.1.incr.aof seq 1 type i\n"
    (folder / "appendonly.aof.manifest").write_text(manifest, encoding="ascii")
