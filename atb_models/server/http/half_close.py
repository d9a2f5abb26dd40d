"""Answering a client that has shut down its writing side, and noticing one that has left.

To the server both look alike: its side of the connection ends. They differ in what the client's host does with a byte
that is sent to it: it takes it for a client that is there, and resets the connection of one that has left. So such a
connection is probed with a byte of TCP urgent data, which is no part of the stream that the client reads (RFC 6093).
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress

from uvicorn.protocols.http.h11_impl import H11Protocol

FIRST_PROBE_S, PROBE_EVERY_S = 0.1, 1.0


class HalfCloseProtocol(H11Protocol):
    """uvicorn's protocol of a connection. Over TLS asyncio cannot do this: there the end of reading ends all."""

    _is_half_closed = False
    _is_probed_in_answer = False
    _timer: asyncio.TimerHandle | None = None

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """True keeps the connection open for writing."""
        if self.scheme == "https" or not self._owes_answer():
            return None
        if not self._is_half_closed:
            self._is_half_closed = True
            self._probe()
            self._timer = self.loop.call_later(FIRST_PROBE_S, self._watch)
        return True

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._is_half_closed and not self._owes_answer():  # another request may have been sent with this one
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def _owes_answer(self) -> bool:
        """Whether a request has come to its end and its answer has not."""
        return self.cycle is not None and not self.cycle.more_body and not self.cycle.response_complete

    def _watch(self) -> None:
        """End the connection if the client's host has reset it, else look again later."""
        if self.transport.is_closing() or not self._owes_answer():
            return
        if self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.transport.abort()
            return
        self._probe()
        self._timer = self.loop.call_later(PROBE_EVERY_S, self._watch)

    def _probe(self) -> None:
        """Send a byte out of band. A second one behind data that was not read yet would make the first a part of the
        stream, so there is but one after an answer has begun; then the answer itself shows who has left."""
        if self._is_probed_in_answer:
            return
        self._is_probed_in_answer = self.cycle.response_started
        with suppress(OSError), socket.socket(fileno=self._socket.dup().detach()) as plain:
            plain.send(b"\0", socket.MSG_OOB)

    @property
    def _socket(self) -> socket.socket:
        found: socket.socket = self.transport.get_extra_info("socket")
        return found
