"""HTTP/1.1 for the clients: POST and GET of JSON over asyncio, streamed answers, server-sent events.

Each request has its own connection. That costs a round trip, but a server cannot have closed it in the meantime.
"""

from __future__ import annotations

import asyncio
import json
import re
import ssl
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

from atb_models.errors import AtbError, ConfigError

LINE_LIMIT = 1 << 26  # bytes; a whole answer may be one line
READ_BYTES = 1 << 16
MESSAGE_LIMIT = 500  # characters


class NoAnswer(AtbError):
    """The server cannot be reached, or it stopped in the middle of an answer."""


class ServerRefusal(AtbError):
    """The server has answered with an error. status: of HTTP. body: JSON values, or text if it is no JSON.

    retry_after_s: after how many seconds it may be asked again.
    """

    def __init__(self, status: int, body: Any, retry_after_s: float | None = None) -> None:
        super().__init__(f"status {status}: {_message(body)}")
        self.status, self.body, self.retry_after_s = status, body, retry_after_s


@dataclass(frozen=True)
class RemoteServer:
    """A server. url: such as http://host:port/prefix, with or without OpenAI's /v1 at its end.

    timeout_s: longest time without data. Raises ConfigError for a bad URL.
    """

    url: str
    key: str | None = field(default=None, repr=False)
    timeout_s: float = 600.0

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            ok = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and self.url.isascii()
        except ValueError:
            ok = False
        if not ok or self.url != "".join(self.url.split()) or parts.query or parts.fragment or parts.username:
            raise ConfigError(f"--url {self.url!r} must be as http://127.0.0.1:6006 or https://host/prefix")

    @cached_property
    def _tls(self) -> ssl.SSLContext | None:
        return ssl.create_default_context() if urlsplit(self.url).scheme == "https" else None

    async def json(self, path: str, body: Any = None) -> Any:
        """The JSON that a POST of `body`, or a GET, is answered with. Raises ServerRefusal or NoAnswer."""
        async with self.open(path, body) as answer:
            data = await answer.rest()
        try:
            return json.loads(data)
        except ValueError:
            raise NoAnswer(f"{self.url}{path} has sent an answer that is no JSON") from None

    async def events(self, path: str, body: Any) -> AsyncGenerator[Any, None]:
        """The JSON of each event of a stream, up to [DONE].

        Raises ServerRefusal or NoAnswer; the latter also for a stream that ends without [DONE].
        """
        async with self.open(path, body) as answer:
            async for line in answer.lines():
                if not line.startswith(b"data:"):
                    continue
                if line[5:].strip() == b"[DONE]":
                    return
                event = json.loads(line[5:])
                if not isinstance(event, dict):
                    raise ValueError(f"it has sent an event that is no JSON object: {str(event)[:MESSAGE_LIMIT]}")
                if event.get("error"):
                    raise NoAnswer(f"{self.url} has stopped the answer: {_message(event)}")
                yield event
        raise NoAnswer(f"{self.url} has ended the stream before the answer was complete")

    @asynccontextmanager
    async def open(self, path: str, body: Any = None) -> AsyncIterator[HttpResponse]:
        """Send the request; gives the response once its head has arrived. Raises ServerRefusal or NoAnswer."""
        parts = urlsplit(self.url)
        data = b"" if body is None else json.dumps(body).encode()
        port = parts.port or (443 if self._tls else 80)
        writer = patience = None
        try:
            connecting = asyncio.open_connection(parts.hostname, port, ssl=self._tls, limit=LINE_LIMIT)
            reader, writer = await asyncio.wait_for(connecting, self.timeout_s)
            writer.write(self._head(path, data, post=body is not None) + data)
            patience = _Patience(reader, self.timeout_s)
            answer = await HttpResponse.begun(reader, patience)
            if answer.status != 200:
                raise _refused(answer, await answer.rest())
            yield answer
        except (asyncio.TimeoutError, TimeoutError):
            raise NoAnswer(f"{self.url} has sent nothing for {self.timeout_s:g} s") from None
        except (OSError, EOFError, ValueError, asyncio.LimitOverrunError) as error:  # ValueError: no HTTP, or no JSON
            raise NoAnswer(f"{self.url} does not answer: {error or type(error).__name__}") from None
        finally:
            if patience is not None:
                patience.end()
            if writer is not None:
                writer.close()

    def _head(self, path: str, data: bytes, *, post: bool) -> bytes:
        parts = urlsplit(self.url)
        prefix = parts.path.rstrip("/").removesuffix("/v1")
        lines = [f"{'POST' if post else 'GET'} {prefix}{path} HTTP/1.1", f"Host: {parts.netloc}", "Connection: close"]
        if post:
            lines += ["Content-Type: application/json", f"Content-Length: {len(data)}"]
        if self.key:
            lines.append(f"Authorization: Bearer {self.key}")
        return "\r\n".join([*lines, "", ""]).encode()


class _Patience:
    """Ends a read with TimeoutError after `timeout_s` seconds without data; one timer for all reads of an answer."""

    def __init__(self, reader: asyncio.StreamReader, timeout_s: float) -> None:
        self._reader, self._timeout_s = reader, timeout_s
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(timeout_s, self._look)
        self.heard()

    def heard(self) -> None:
        self._last_s = self._loop.time()

    def end(self) -> None:
        self._timer.cancel()

    def _look(self) -> None:
        left = self._last_s + self._timeout_s - self._loop.time()
        if left > 0:
            self._timer = self._loop.call_later(left, self._look)
        else:
            self._reader.set_exception(TimeoutError())


@dataclass
class HttpResponse:
    """A response whose body is still to be read. headers: names in lower case."""

    status: int
    headers: dict[str, str]
    _reader: asyncio.StreamReader
    _patience: _Patience

    @classmethod
    async def begun(cls, reader: asyncio.StreamReader, patience: _Patience) -> HttpResponse:
        """Read the head. Raises OSError, EOFError, ValueError or TimeoutError."""
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        if not (match := re.match(r"HTTP/1\.\d (\d{3})", first)):
            raise ValueError("it does not speak HTTP")
        pairs = [line.partition(":") for line in lines if line]
        return cls(int(match[1]), {name.lower(): value.strip() for name, _, value in pairs}, reader, patience)

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body, as it arrives."""
        if self.headers.get("transfer-encoding", "").lower() == "chunked":
            while size := int((await self._reader.readuntil(b"\r\n")).split(b";")[0], 16):
                piece = await self._reader.readexactly(size + 2)
                self._patience.heard()
                yield piece[:-2]
            return
        left = int(self.headers.get("content-length", 1 << 62))
        while left and (piece := await self._reader.read(min(left, READ_BYTES))):
            self._patience.heard()
            left -= len(piece)
            yield piece
        if left and "content-length" in self.headers:
            raise EOFError("the answer ends too early")

    async def lines(self) -> AsyncIterator[bytes]:
        """The lines of the body, as they arrive."""
        rest = b""
        async for piece in self.pieces():
            *whole, rest = (rest + piece).split(b"\n")
            for line in whole:
                yield line.rstrip(b"\r")

    async def rest(self) -> bytes:
        return b"".join([piece async for piece in self.pieces()])


def _refused(answer: HttpResponse, data: bytes) -> ServerRefusal:
    wait = answer.headers.get("retry-after", "")
    try:
        body = json.loads(data)
    except ValueError:  # such as the page of a proxy
        body = data.decode("utf-8", "replace").strip()
    return ServerRefusal(answer.status, body, float(wait) if wait.isdigit() else None)


def _message(body: Any) -> str:
    """The message of an error's body, in one line."""
    error = body.get("error", body) if isinstance(body, dict) else body
    said = str(error.get("message", error) if isinstance(error, dict) else error)
    return " ".join(said.split())[:MESSAGE_LIMIT]
