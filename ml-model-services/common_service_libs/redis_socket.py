"""One blocking, pipelined connection to a Redis-protocol server, for programs without an event loop."""

from __future__ import annotations

import os
import socket
from typing import Any, Self

import hiredis

from common_service_libs.errors import OnlineStoreError
from common_service_libs.redis_link import encode_command, in_transaction

RECEIVE_BYTES = 1 << 18


class RedisSocket:
    """Sends encoded commands and waits for their replies; connects when it is first needed.

    A call is a transaction that carries a number used once, as those of a `RedisLink` do. After an error the
    connection is given up, so that a late reply is never taken for another call's; the next call connects
    anew. Not for use from several threads at once.
    """

    def __init__(
        self, host: str, port: int, password: str | None = None, *, timeout_seconds: float = 5.0
    ) -> None:
        self._address = (host, port)
        self._password = password
        self._timeout = timeout_seconds
        self._socket: socket.socket | None = None
        self._reader = hiredis.Reader()

    def call(self, payload: bytes, expected: int) -> list[Any]:
        """Return the `expected` replies to `payload`; error replies are exceptions among them.

        Raises OnlineStoreError if the server is silent for the timeout, closes the connection, refuses the
        password or all the commands, does not speak the protocol, or answers with what belongs to another
        call.
        """
        try:
            if self._socket is None:
                self._connect()
            return self._transaction(payload, expected)
        except (OSError, hiredis.ProtocolError) as error:
            self.close()
            raise OnlineStoreError(
                f"the online store does not answer: {error or type(error).__name__}"
            ) from None
        except BaseException:
            self.close()
            raise

    def _connect(self) -> None:
        connection = socket.create_connection(self._address, self._timeout)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket, self._reader = connection, hiredis.Reader()
        if self._password:
            [reply] = self._exchange(encode_command(b"AUTH", self._password.encode()), 1)
            if reply != b"OK":
                raise OnlineStoreError(f"the online store refuses the login: {reply}")

    def _transaction(self, payload: bytes, expected: int) -> list[Any]:
        nonce = os.urandom(8)
        replies: Any = self._exchange(in_transaction(payload, nonce), expected + 3)[-1]
        if isinstance(replies, hiredis.ReplyError):
            raise OnlineStoreError(f"the online store answers with an error: {replies}")
        if type(replies) is not list or len(replies) != expected + 1 or replies.pop() != nonce:
            raise OnlineStoreError("the online store does not answer: the reply to another call")
        return replies

    def _exchange(self, payload: bytes, expected: int) -> list[Any]:
        assert self._socket is not None
        self._socket.sendall(payload)
        replies: list[Any] = []
        receive, reader = self._socket.recv, self._reader
        while len(replies) < expected:
            data = receive(RECEIVE_BYTES)
            if not data:
                raise ConnectionError("connection closed")
            reader.feed(data)
            while (reply := reader.gets()) is not False:
                replies.append(reply)
        return replies

    def close(self) -> None:
        """Give the connection up; the next call opens another."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
