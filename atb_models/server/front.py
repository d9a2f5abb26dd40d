"""The front of the service: the HTTP server and its engine, from the first connection to the last answer."""

from __future__ import annotations

import asyncio
import itertools
import logging
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import uvicorn

from atb_models.command.exit_status import INTERRUPTED, print_error
from atb_models.engine.config import EngineConfig
from atb_models.server.app import create_app
from atb_models.server.engine_client import EngineClient
from atb_models.server.http.accept_errors import AcceptErrors
from atb_models.server.http.access import Access
from atb_models.server.http.half_close import HalfCloseProtocol
from atb_models.server.service import Service, Settings
from atb_models.text.tokenizer import Tokenizer
from atb_models.wording import counted

logger = logging.getLogger(__name__)

LINGER_S = 1.0  # for clients to read why they got no answer
RESTART_AFTER_S = (1.0, 5.0, 30.0)  # and every 30 s after that
KEEP_ALIVE_S = 75  # longer than proxies do, or they would use a connection that is being closed
GRACE_S = 2  # for connections to close
DRAIN_LOOK_S = 0.05


async def run(
    config: EngineConfig,
    tokenizer: Tokenizer | None,
    settings: Settings,
    granted: Access,
    options: FrontOptions,
    sock: socket.socket,
) -> int:
    """Serve on a listening socket until told to end. The exit status."""
    service = Service(EngineClient(config), tokenizer, settings)
    return await Front(service, config, granted, options).run(sock)


@dataclass(frozen=True)
class FrontOptions:
    """The flags of these names."""

    ssl_certfile: str | None
    ssl_keyfile: str | None
    restart: bool
    drain_timeout: float  # seconds


class Front:
    """The HTTP server and its engine, which start and end together."""

    def __init__(self, service: Service, config: EngineConfig, granted: Access, options: FrontOptions) -> None:
        self._service, self._config, self._options = service, config, options
        self._server = _Server(
            uvicorn.Config(
                create_app(service, granted),
                http=HalfCloseProtocol,
                log_config=None,
                access_log=False,
                lifespan="off",
                ws="none",
                timeout_keep_alive=KEEP_ALIVE_S,
                ssl_certfile=options.ssl_certfile,
                ssl_keyfile=options.ssl_keyfile,
                timeout_graceful_shutdown=GRACE_S,
            )
        )
        self._told_to_end = asyncio.Event()
        self._told_again = asyncio.Event()
        self._status = 0

    async def run(self, sock: socket.socket) -> int:
        """Serve until a signal or the engine's end. The exit status."""
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._on_signal, number)
        self._url = address(sock, tls=self._options.ssl_certfile is not None)
        logger.info("listening on %s, the model is loading", self._url)
        asyncio.get_running_loop().set_exception_handler(AcceptErrors())
        serving = asyncio.ensure_future(self._server.serve(sockets=[sock]))
        engine = asyncio.ensure_future(self._keep_engine())
        ending = asyncio.ensure_future(self._told_to_end.wait())
        await asyncio.wait((serving, engine, ending), return_when=asyncio.FIRST_COMPLETED)
        if ending.done():
            await self._drain()
        ending.cancel()
        self._service.client.stop(kill=self._told_again.is_set())
        self._server.should_exit = True
        self._server.force_exit = self._told_again.is_set()
        await asyncio.gather(serving, engine)
        self._service.texts.close()
        return self._status

    async def _keep_engine(self) -> None:
        """Run the engine; with --restart, start it again when it dies. Returns when it is not started again."""
        for pause_s in itertools.chain(RESTART_AFTER_S, itertools.repeat(RESTART_AFTER_S[-1])):
            client = self._service.client
            await client.run(self._ready)
            if self._told_to_end.is_set() and not client.cause:
                return
            print_error(client.cause)
            if not self._options.restart or client.facts is None or self._told_to_end.is_set():
                self._status = client.status or 1
                await asyncio.sleep(LINGER_S)
                return
            logger.error("the engine is started again in %g s", pause_s)
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._told_to_end.wait(), pause_s)
            if self._told_to_end.is_set():
                return
            self._service.attach(EngineClient(self._config))

    def _ready(self) -> None:
        facts = self._service.facts
        logger.info(
            "ready: %s, model %s, %s, %s, up to %d requests at once, KV cache %d tokens",
            self._url, self._service.settings.model_name, facts.device, counted(facts.size, "rank"),
            facts.max_batch_size, facts.pool_tokens,
        )  # fmt: skip

    def _on_signal(self, number: int) -> None:
        if self._told_to_end.is_set():
            self._status = 128 + number
            self._told_again.set()
            self._service.client.stop(kill=True)
        else:
            self._status = self._status or (INTERRUPTED if number == signal.SIGINT else 0)  # the engine may have died
            self._service.draining = True
            self._told_to_end.set()

    async def _drain(self) -> None:
        """Let running requests finish, for --drain_timeout seconds or until a second signal."""
        running = self._service.client.open_requests
        if running:
            limit = self._options.drain_timeout
            logger.info("ending: %d requests have %g s; a second signal ends at once", running, limit)
        deadline = asyncio.get_running_loop().time() + self._options.drain_timeout
        again = asyncio.ensure_future(self._told_again.wait())
        while self._service.open_jobs and not again.done() and asyncio.get_running_loop().time() < deadline:
            await asyncio.wait((again,), timeout=DRAIN_LOOK_S)
        again.cancel()


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def address(sock: socket.socket, *, tls: bool) -> str:
    """The URL of a listening socket."""
    host, port = sock.getsockname()[:2]
    scheme = "https" if tls else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
