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
from atb_models.server.job import Answer, Job
from atb_models.server.replies import as_json

logger = logging.getLogger(__name__)

UNREAD_S = 5.0  # for a client to read after the time for its answer is over


class ClientLeft(Exception):
    """The client has closed its connection."""


async def whole(request: Request, job: Job) -> list[Answer]:
    """All answers of a job. Raises ClientLeft, after ending the job, if the client leaves."""
    with job:
        return await _while_there(request.receive, job.whole())


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
    """Sends `events`; ends the job if the client leaves.

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
                await _while_there(receive, self._send(send), self._job.remaining_s + UNREAD_S)

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


async def _while_there(receive: Receive, work: Any, timeout_s: float | None = None) -> Any:
    """The result of `work`. If the client leaves first, `work` is cancelled and ClientLeft is raised.

    timeout_s: a client that does not read for so long counts as one that has left.
    """
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_left(receive))
    try:
        await asyncio.wait((working, leaving), timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientLeft
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
