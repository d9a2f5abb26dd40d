"""`atb-models serve`: from the arguments to the front, which has the packages of the extra `server`."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from atb_models import env, log
from atb_models.command.descriptors import raise_descriptor_limit
from atb_models.command.engine_options import engine_config, model_name
from atb_models.command.exit_status import run_guarded
from atb_models.command.parser import typed
from atb_models.engine.config import EngineConfig
from atb_models.errors import ConfigError
from atb_models.server.args import access, parse_args
from atb_models.text.tokenizer import load_tokenizer

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status of the service with these arguments (None: the process's)."""
    env.set_default("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")
    return run_guarded(lambda: serve(sys.argv[1:] if argv is None else argv))


def serve(argv: Sequence[str]) -> int:
    """Check all that can be checked, then serve until told to end. Under torchrun every rank runs this."""
    log.setup()
    args = parse_args(argv)
    from atb_models.server import front  # here, so that --help does not need the extra

    raise_descriptor_limit()
    granted = access(args)
    config = engine_config(args, max_batch_size=args.max_batch_size, max_seq_len=args.max_seq_len)
    config.load_model_config()
    if env.get("TORCHELASTIC_RUN_ID") and args.restart:
        raise ConfigError("--restart cannot start torchrun's ranks again; use torchrun's --max-restarts")
    if (env.get("RANK") or 0) != 0:
        _execute_steps(config)
    settings = front.Settings(
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
        return asyncio.run(front.run(config, tokenizer, settings, granted, typed(args, front.FrontOptions), sock))


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
