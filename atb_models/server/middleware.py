"""Checks of every request before an endpoint sees it: its key, and the size and time of its body."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Iterable
from contextlib import suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from atb_models.server.errors import ServiceError
from atb_models.server.replies import error_reply

OPEN_PATHS = ("/health", "/ready")


class Unauthorized(ServiceError):
    """The key is missing or wrong."""

    status, kind = 401, "authentication_error"


class TooLarge(ServiceError):
    """The body is larger than the service takes."""

    status, kind = 413, "invalid_request_error"


class TooSlow(ServiceError):
    """The body did not arrive in time."""

    status, kind = 408, "timeout_error"


class RequireKey:
    """Refuses requests without one of the keys, except for `OPEN_PATHS` and the chat page, which asks for a key."""

    def __init__(self, app: ASGIApp, keys: Iterable[str]) -> None:
        self._app, self._keys = app, [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._keys and not _is_open(scope) and not self._has_key(scope):
            error = Unauthorized("this service needs a key: send it as `Authorization: Bearer KEY`")
            response = error_reply(scope["path"], error)
            response.headers["www-authenticate"] = "Bearer"
            await response(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _has_key(self, scope: Scope) -> bool:
        """Compares with every key, in constant time, so that the time reveals nothing about the keys."""
        given = dict(scope["headers"]).get(b"authorization", b"")
        kind, _, key = given.partition(b" ")
        return any([hmac.compare_digest(key.strip(), ours) for ours in self._keys]) and kind.lower() == b"bearer"


def _is_open(scope: Scope) -> bool:
    return scope["path"] in OPEN_PATHS or (scope["path"] == "/" and scope["method"] in ("GET", "HEAD"))


class LimitBody:
    """Reads the body before the endpoint: at most `max_bytes`, within `timeout_s` seconds."""

    def __init__(self, app: ASGIApp, max_bytes: int, timeout_s: float) -> None:
        self._app, self._max_bytes, self._timeout_s = app, max_bytes, timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            body = await asyncio.wait_for(self._read(scope, receive), self._timeout_s)
        except asyncio.TimeoutError:
            await _refuse(TooSlow(f"the body did not arrive within {self._timeout_s:g} s"), scope, send)
        except TooLarge as error:
            await _refuse(error, scope, send, self._discard(receive))
        else:
            if body is not None:
                await self._app(scope, _Replay(body, receive), send)

    async def _read(self, scope: Scope, receive: Receive) -> bytes | None:
        """The body; None if the client left before it was complete."""
        length = dict(scope["headers"]).get(b"content-length", b"")
        if length.isdigit() and int(length[:20]) > self._max_bytes:
            raise TooLarge(f"the body has {int(length[:20])} bytes, at most {self._max_bytes} are taken")
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            if len(body) > self._max_bytes:
                raise TooLarge(f"the body has more than {self._max_bytes} bytes")
            if not message.get("more_body"):
                return bytes(body)

    async def _discard(self, receive: Receive) -> None:
        """Read the rest of the body: a client that sends it all before it reads would get no reply otherwise."""
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(_to_the_end(receive), self._timeout_s)


async def _to_the_end(receive: Receive) -> None:
    while (await receive()).get("more_body"):
        pass


class _Replay:
    """Gives the endpoint the body that was read, then what follows it."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self._body: bytes | None = body
        self._receive = receive

    async def __call__(self) -> Message:
        if self._body is None:
            return await self._receive()
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}


async def _refuse(error: ServiceError, scope: Scope, send: Send, before_closing: Awaitable[None] | None = None) -> None:
    """Refuse, and close the connection: its body has not been read to the end."""
    reply = error_reply(scope["path"], error)
    reply.headers["connection"] = "close"
    await send({"type": "http.response.start", "status": reply.status_code, "headers": reply.raw_headers})
    await send({"type": "http.response.body", "body": reply.body, "more_body": True})
    if before_closing is not None:
        await before_closing
    await send({"type": "http.response.body", "body": b""})
