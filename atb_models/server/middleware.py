"""Checks of every request before an endpoint sees it: its key, and the size and time of its body."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Iterable
from contextlib import suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from atb_models.server.errors import Busy, Invalid, ServiceError
from atb_models.server.http.held_bodies import HELD, SHARE_BYTES, SMALL_BYTES, HeldBodies, HeldBody
from atb_models.server.replies import error_reply

MOST_OBJECTS = 1 << 14  # of a body: messages and parts of them
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
    """Reads the body before the endpoint: at most `max_bytes`, within `timeout_s` seconds, and no more than there is
    room for. Ends the endpoint when the client leaves."""

    def __init__(self, app: ASGIApp, max_bytes: int, timeout_s: float, share_bytes: int = SHARE_BYTES) -> None:
        self._app, self._max_bytes, self._timeout_s = app, max_bytes, timeout_s
        self._held = HeldBodies(share_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        held = scope[HELD] = self._held.body()
        try:
            body = await asyncio.wait_for(self._read(scope, receive, held), self._timeout_s)
        except asyncio.TimeoutError:
            await _refuse(TooSlow(f"the body did not arrive within {self._timeout_s:g} s"), scope, send)
        except (TooLarge, Invalid, Busy) as error:
            held.release()
            await _refuse(error, scope, send, self._discard(receive))
        else:
            if body is not None:
                await self._answer(body, scope, receive, send)
        finally:
            held.release()

    async def _answer(self, body: bytes, scope: Scope, receive: Receive, send: Send) -> None:
        """Have the endpoint answer, unless the client leaves before the answer is complete."""
        is_complete = False

        async def noting(message: Message) -> None:
            nonlocal is_complete
            if message["type"] == "http.response.start":
                scope[HELD].release()
            elif message["type"] == "http.response.body":
                is_complete = not message.get("more_body", False)
            await send(message)

        leaving = asyncio.ensure_future(_left(receive))
        working = asyncio.ensure_future(self._app(scope, _Replay(body, leaving), noting))
        try:
            await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
            if not is_complete:
                working.cancel()
            await asyncio.wait((working,))
            if not working.cancelled():
                working.result()
        finally:
            for task in (working, leaving):
                task.cancel()
            await asyncio.gather(working, leaving, return_exceptions=True)

    async def _read(self, scope: Scope, receive: Receive, held: HeldBody) -> bytes | None:
        """The body; None if the client left before it was complete."""
        length = dict(scope["headers"]).get(b"content-length", b"")
        if length.isdigit() and int(length[:20]) > self._max_bytes:
            raise TooLarge(f"the body has {int(length[:20])} bytes, at most {self._max_bytes} are taken")
        parts, size = [], 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self._max_bytes:
                raise TooLarge(f"the body has more than {self._max_bytes} bytes")
            held.read(size)
            if not message.get("more_body"):
                break
        body = b"".join(parts)
        held.parse(body)
        _check_objects(body)
        return body

    async def _discard(self, receive: Receive) -> None:
        """Read the rest of the body: a client that sends it all before it reads would get no reply otherwise."""
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(_to_the_end(receive), self._timeout_s)


def _check_objects(body: bytes) -> None:
    """Raises Invalid for more objects than are checked in a moment. In a text a quotation mark has a stroke before
    it, so that `{"` begins an object, or ends a text."""
    if len(body) > SMALL_BYTES and body.translate(None, b" \t\r\n").count(b'{"') > MOST_OBJECTS:
        raise Invalid(f"the body has more than {MOST_OBJECTS} JSON objects")


async def _to_the_end(receive: Receive) -> None:
    while (await receive()).get("more_body"):
        pass


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class _Replay:
    """Gives the endpoint the body that was read, then the client's leaving."""

    def __init__(self, body: bytes, leaving: asyncio.Future[None]) -> None:
        self._body: bytes | None = body
        self._leaving = leaving

    async def __call__(self) -> Message:
        if self._body is None:
            await asyncio.wait((self._leaving,))
            return {"type": "http.disconnect"}
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
