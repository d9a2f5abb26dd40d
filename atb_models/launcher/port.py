"""The rendezvous address and port of the launcher's ranks."""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Iterable

from atb_models import env
from atb_models.errors import ConfigError

logger = logging.getLogger(__name__)

DEFAULT_PORT = 20030
PORTS = range(20000, 20051)  # what MindIE's manual advises


def choose_address() -> str:
    """MASTER_ADDR, MASTER_IP or 127.0.0.1. Raises ConfigError for one at which this machine cannot listen."""
    for name in ("MASTER_ADDR", "MASTER_IP"):
        address = env.get(name)
        if address is not None:
            if not _is_ours(address):
                raise ConfigError(
                    f"{name}={address} is no address of this machine; several hosts are not supported by the scripts;"
                    " unset it"
                )
            return str(address)
    return "127.0.0.1"


def _is_ours(address: str) -> bool:
    try:
        places = socket.getaddrinfo(address, 0, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return False
    for family, kind, protocol, _, place in places:
        try:
            with socket.socket(family, kind, protocol) as listener:
                listener.bind(place)
                return True
        except OSError:
            continue
    return False


def choose_port(wanted: int | None, taken: Iterable[int] = ()) -> int:
    """The user's port `wanted`, or 20030, or another free one of PORTS; `taken` are known not to be free.

    Raises ConfigError when the user's port is taken or none is free.
    """
    taken = set(taken)
    if wanted is not None:
        if wanted in taken or not is_free(wanted):
            raise ConfigError(f"MASTER_PORT={wanted} is taken by another process; export another one, or unset it")
        return wanted
    after, before = PORTS[PORTS.index(DEFAULT_PORT) :], PORTS[: PORTS.index(DEFAULT_PORT)]
    for port in (*after, *before):
        if port not in taken and is_free(port):
            if port != DEFAULT_PORT:
                logger.warning("port %d is taken: using %d", DEFAULT_PORT, port)
            return port
    raise ConfigError(f"no port from {PORTS[0]} to {PORTS[-1]} is free; export MASTER_PORT with a free one")


def is_free(port: int) -> bool:
    """Whether this process could listen on `port` on all addresses now. Raises ConfigError where it may not."""
    for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        try:
            with socket.socket(family, socket.SOCK_STREAM) as listener:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                listener.bind((address, port))
                listener.listen()
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            if family == socket.AF_INET:
                raise ConfigError(f"MASTER_PORT={port} cannot be used: {error.strerror}; export another") from None
    return True
