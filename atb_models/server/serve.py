"""`atb-models serve`: the front, from the arguments to the last answer."""

from __future__ import annotations

import asyncio
import ipaddress
import itertools
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import uvicorn

from atb_models import env, log
from atb_models.command.descriptors import raise_descriptor_limit
from atb_models.command.engine_options import engine_config, model_name
from atb_models.command.exit_status import INTERRUPTED, print_error, run_guarded
from atb_models.command.parser import typed
from atb_models.engine.config import EngineConfig
from atb_models.errors import ConfigError
from atb_models.server.app import Access, create_app
from atb_models.server.args import access, parse_args
from atb_models.server.engine_client import EngineClient
from atb_models.server.http.accept_errors import AcceptErrors
from atb_models.server.http.half_close import HalfCloseProtocol
from atb_models.server.service import Service, Settings
from atb_models.text.tokenizer import Tokenizer, load_tokenizer
from atb_models.wording import counted

logger = logging.getLogger(__name__)

LINGER_S = 1.0  # for clients to read why they got no answer
RESTART_AFTER_S = (1.0, 5.0, 30.0)  # and every 30 s after that
KEEP_ALIVE_S = 75  # longer than proxies do, or they would use a connection that is being closed
GRACE_S = 2  # for connections to close
DRAIN_LOOK_S = 0.05


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status of the service with these arguments (None: the process's)."""
    os.environ.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")
    return run_guarded(lambda: serve(sys.argv[1:] if argv is None else argv))


def serve(argv: Sequence[str]) -> int:
    """Check all that can be checked, then serve until told to end. Under torchrun every rank runs this."""
    log.setup()
    args = parse_args(argv)
    raise_descriptor_limit()
    granted = access(args)
    config = engine_config(args, max_batch_size=args.max_batch_size, max_seq_len=args.max_seq_len)
    config.load_model_config()
    if env.get("TORCHELASTIC_RUN_ID") and args.restart:
        raise ConfigError("--restart cannot start torchrun's ranks again; use torchrun's --max-restarts")
    if (env.get("RANK") or 0) != 0:
        _execute_steps(config)
    settings = Settings(
        model_name=args.model_name or model_name(config),
        folder=config.folder,
        max_queue=args.max_queue,
        request_timeout_s=args.request_timeout,
        log_prompts=args.log_prompts,
        chat_template=args.chat_template,
        trust_remote_code=args.trust_remote_code,
    )
    tokenizer = (
        load_tokenizer(config.folder, args.chat_template, args.trust_remote_code) if args.load_tokenizer else None
    )
    with listener(args.host, args.port) as sock:
        if not granted.keys and not is_local(sock):
            logger.warning(
                "everybody who can reach this machine can use the service: --host %s without --api_key", args.host
            )
        return asyncio.run(_front(config, tokenizer, settings, granted, typed(args, FrontOptions), sock))


def _execute_steps(config: EngineConfig) -> None:
    """On the ranks of torchrun other than 0: execute steps; ends by SystemExit when rank 0 closes."""
    from atb_models import LLM
    from atb_models.models.weights.loader import listeners

    listeners.append(_stay)
    LLM(config)


def _stay(*_: int) -> None:
    """Ignore SIGTERM, which torchrun sends to all of its ranks.

    Rank 0 may have requests to answer. The other ranks end when rank 0 tells them to, or when it dies.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))


async def _front(
    config: EngineConfig,
    tokenizer: Tokenizer | None,
    settings: Settings,
    granted: Access,
    options: FrontOptions,
    sock: socket.socket,
) -> int:
    service = Service(EngineClient(config), tokenizer, settings)
    return await Front(service, config, granted, options).run(sock)


@contextmanager
def listener(host: str, port: int) -> Iterator[socket.socket]:
    """The listening socket. Raises ConfigError if the address is not this machine's or the port is in use."""
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"--host {host} is no address of this machine: {error}") from None
    with sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(place)
            sock.listen(1024)
        except OSError as error:
            raise ConfigError(f"cannot listen on {host} port {port}: {error.strerror}; choose another --port") from None
        yield sock


def is_local(sock: socket.socket) -> bool:
    """Whether only programs of this machine can reach a socket. --host has too many forms to tell."""
    return ipaddress.ip_address(sock.getsockname()[0]).is_loopback


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
