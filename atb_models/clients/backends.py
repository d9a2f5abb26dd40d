"""What answers a batch: a server, or the service's endpoints in this process, without a socket."""

from __future__ import annotations

import asyncio
import json
import logging
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Protocol

from atb_models.clients.http import NoAnswer, RemoteServer, ServerRefusal
from atb_models.engine.config import EngineConfig
from atb_models.errors import AtbError

if TYPE_CHECKING:
    from fastapi import FastAPI

TRY_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})  # statuses that may be different later
PAUSES_S = (1.0, 2.0, 5.0, 10.0, 20.0)
MAX_PAUSE_S = 60.0


class BatchBackend(Protocol):
    async def post(self, path: str, body: Any) -> tuple[int, Any]:
        """Status and JSON of an answer, or of a final refusal.

        Raises ServerRefusal if this request has neither, another AtbError if no further request would have one.
        """


class Remote:
    """A server. Requests that it may answer later are sent again, also after a connection that failed."""

    def __init__(self, server: RemoteServer) -> None:
        self._server = server

    async def post(self, path: str, body: Any) -> tuple[int, Any]:
        for pause_s in PAUSES_S:
            try:
                return await self._once(path, body)
            except (NoAnswer, ServerRefusal) as error:
                wanted_s = error.retry_after_s if isinstance(error, ServerRefusal) else None
                await asyncio.sleep(pause_s if wanted_s is None else min(wanted_s, MAX_PAUSE_S))
        return await self._once(path, body)

    async def _once(self, path: str, body: Any) -> tuple[int, Any]:
        try:
            return 200, await self._server.json(path, body)
        except ServerRefusal as error:
            if error.status in TRY_AGAIN:
                raise
            if error.status in (401, 403):  # the key may be right in the next run
                raise AtbError(f"{self._server.url} refuses us, {error}") from None
            return error.status, error.body


class Local:
    """The application of `atb-models serve`, called in the way of an HTTP server."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app

    async def post(self, path: str, body: Any) -> tuple[int, Any]:
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
            "path": path, "raw_path": path.encode(), "root_path": "", "query_string": b"",
            "headers": [(b"content-type", b"application/json")], "client": None, "server": None,
        }  # fmt: skip
        request: list[Any] = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]
        sent: list[Any] = []

        async def receive() -> Any:
            return request.pop() if request else await asyncio.Event().wait()  # the client never leaves

        async def send(message: Any) -> None:
            sent.append(message)

        try:
            await self._app(scope, receive, send)
        except Exception:  # it is in the log, and Starlette has sent status 500
            if not sent:
                raise
        status: int = sent[0]["status"]
        answer = json.loads(b"".join(message["body"] for message in sent[1:]))
        if status == 503:
            raise AtbError(answer["error"]["message"])
        if status >= 500:
            raise ServerRefusal(status, answer)
        return status, answer


@asynccontextmanager
async def local(config: EngineConfig, model_name: str, *, load_tokenizer: bool) -> AsyncIterator[Local]:
    """Load the model in a process of its own. Raises AtbError if it ends before it is ready."""
    from atb_models.server.app import create_app
    from atb_models.server.engine_client import EngineClient
    from atb_models.server.http.access import Access
    from atb_models.server.service import Service, Settings
    from atb_models.text.tokenizer import load_tokenizer as tokenizer_of

    logging.getLogger("atb_models.server.app").setLevel(logging.WARNING)  # no line for each request
    config.load_model_config()
    tokenizer = None
    if load_tokenizer:
        tokenizer = tokenizer_of(config.folder, config.chat_template, config.trust_remote_code)
    client = EngineClient(config)
    settings = Settings(
        model_name,
        config.folder,
        max_queue=1 << 30,
        request_timeout_s=math.inf,
        chat_template=config.chat_template,
        trust_remote_code=config.trust_remote_code,
    )
    service = Service(client, tokenizer, settings)
    app = create_app(service, Access(max_body_bytes=1 << 40, body_timeout_s=math.inf, held_bytes=1 << 40))
    ready = asyncio.Event()
    running = asyncio.ensure_future(client.run(ready.set))
    waiting = asyncio.ensure_future(ready.wait())
    try:
        await asyncio.wait((running, waiting), return_when=asyncio.FIRST_COMPLETED)
        if not ready.is_set():
            await running
            raise AtbError(client.cause)
        yield Local(app)
    finally:
        waiting.cancel()
        service.texts.close()
        client.stop()
        await running
