"""Sends answers, whole or as server-sent events, and notices when the client leaves."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, suppress
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from atb_models.server.errors import Broken, ServiceError
from atb_models.server.http.held_bodies import release_body
from atb_models.server.job import Answer, Job
from atb_models.server.replies import as_json

logger = logging.getLogger(__name__)

UNREAD_S = 5.0  # for a client to read after the time for its answer is over


class ClientLeft(Exception):
    """The client does not read its answer."""


async def whole(request: Request, job: Job) -> list[Answer]:
    """All answers of a job, which ends if this is cancelled because the client has left."""
    with job:
        await job.accepted()
        release_body(request.scope)
        return await job.whole()


def event(data: Any) -> bytes:
    """A server-sent event that carries JSON."""
    return b"data: " + as_json(data) + b"\n\n"


async def streamed(
    job: Job,
    events: AsyncIterator[bytes],
    failed: Callable[[ServiceError], bytes],
    media_type: str = "text/event-stream",
) -> EventStream:
    """Answer with `events`, once the engine has queued the job: a refusal must have an HTTP status of its own."""
    with ExitStack() as stack:
        stack.enter_context(job)
        await job.accepted()
        stack.pop_all()
    return EventStream(job, events, failed, media_type)


class EventStream(Response):
    """Sends `events`; ends the job if the client does not read them, or if this is cancelled because it has left.

    After the first byte an error can only be told in the stream: `failed` makes the last event of it.
    """

    def __init__(
        self,
        job: Job,
        events: AsyncIterator[bytes],
        failed: Callable[[ServiceError], bytes],
        media_type: str,
    ) -> None:
        self.status_code, self.background = 200, None
        self.media_type = media_type
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no"})
        self._job, self._events, self._failed = job, events, failed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with suppress(ClientLeft, ServiceError):  # the client has been told
            with self._job:
                try:
                    await asyncio.wait_for(self._send(send), self._job.remaining_s + UNREAD_S)
                except asyncio.TimeoutError:
                    raise ClientLeft from None

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            async for data in self._events:
                await send({"type": "http.response.body", "body": data, "more_body": True})
        except Exception as error:
            told = error if isinstance(error, ServiceError) else Broken()
            if told is not error:
                logger.error("an event of a stream could not be made", exc_info=error)
            await send({"type": "http.response.body", "body": self._failed(told), "more_body": False})
            raise told from None
        await send({"type": "http.response.body", "body": b"", "more_body": False})
