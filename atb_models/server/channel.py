"""Messages over a socket, each pickled, after its length. Both ends are this package, in processes of one user."""

from __future__ import annotations

import asyncio
import pickle
import select
import socket
import struct
from typing import Any

LENGTH = struct.Struct("!Q")
READ_BYTES = 1 << 18


def packed(message: object) -> bytes:
    data = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    return LENGTH.pack(len(data)) + data


async def read_message(reader: asyncio.StreamReader) -> Any:
    """The next message; None at the end of the channel."""
    try:
        (length,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
        return pickle.loads(await reader.readexactly(length))
    except (asyncio.IncompleteReadError, ConnectionResetError):
        return None


class Channel:
    """The engine's end. It is used between steps and does not wait unless it is told to."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._poll = select.poll()  # select.select takes no descriptor from 1024 on
        self._poll.register(end, select.POLLIN)
        self._bytes = bytearray()
        self.closed = False

    def send(self, message: object) -> None:
        """Send a message. Does nothing once the front has ended; `take` then sets `closed`."""
        try:
            self._socket.sendall(packed(message))
        except (BrokenPipeError, ConnectionResetError):
            self.closed = True

    def is_quiet(self, for_s: float) -> bool:
        """Whether nothing arrives for so many seconds, not even a part of a message or the channel's end."""
        return not self._poll.poll(1e3 * for_s)

    def take(self, wait_s: float | None) -> list[Any]:
        """All messages that have arrived. Waits at most `timeout_s` seconds for a first one; None: without limit."""
        messages: list[Any] = []
        while not self.closed and self._poll.poll(None if wait_s is None else 1e3 * wait_s):
            try:
                data = self._socket.recv(READ_BYTES)
            except ConnectionResetError:
                data = b""
            self.closed = not data
            self._bytes += data
            messages += self._messages()
            if messages or wait_s is not None:
                wait_s = 0.0
        return messages

    def _messages(self) -> list[Any]:
        messages, start = [], 0
        while len(self._bytes) - start >= LENGTH.size:
            (length,) = LENGTH.unpack_from(self._bytes, start)
            end = start + LENGTH.size + length
            if len(self._bytes) < end:
                break
            messages.append(pickle.loads(memoryview(self._bytes)[start + LENGTH.size : end]))
            start = end
        del self._bytes[:start]
        return messages
