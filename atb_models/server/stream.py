"""Answering: as a whole or as server-sent events, and noticing that the client has left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, suppress
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from atb_models.server.errors import ServiceError
from atb_models.server.job import Answer, Job
from atb_models.server.replies import as_json

UNREAD_S = 5.0  # that a client may still read after the time for its answer is over


class ClientLeft(Exception):
    """There is nobody to answer."""


async def whole(request: Request, job: Job) -> list[Answer]:
    """All answers of a job. Ends it when the client leaves, with ClientLeft."""
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
    """Answer with `events`, but not before the engine has queued the job: a refusal has a status of its own."""
    with ExitStack() as stack:
        stack.enter_context(job)
        await job.accepted()
        stack.pop_all()
    return EventStream(job, events, failed, media_type)


class EventStream(Response):
    """Sends what `events` gives; ends the job when the client leaves.

    What goes wrong after the first byte can only be said in the stream: `failed` makes the last event of it.
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
        with suppress(ClientLeft, ServiceError):  # the client knows
            with self._job:
                await _while_there(receive, self._send(send), self._job.remaining_s + UNREAD_S)

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            async for data in self._events:
                await send({"type": "http.response.body", "body": data, "more_body": True})
        except ServiceError as error:
            await send({"type": "http.response.body", "body": self._failed(error), "more_body": False})
            raise
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _while_there(receive: Receive, work: Any, timeout_s: float | None = None) -> Any:
    """The result of `work`, unless the client leaves first: then it is cancelled, with ClientLeft.

    timeout_s: after which a client counts as one that has left, for it does not read.
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
