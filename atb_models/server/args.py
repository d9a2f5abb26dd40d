"""The flags of `atb-models serve`: run_pa's for the model, in the same spelling, and the service's own."""

from __future__ import annotations

import argparse
import os
import ssl
from collections.abc import Sequence
from pathlib import Path

from atb_models import env
from atb_models.command.model_flags import cache_flags, length_flag, model_flags, name_flag
from atb_models.command.parser import Parser
from atb_models.command.values import positive, positive_number
from atb_models.engine.config import EngineConfig
from atb_models.errors import ConfigError
from atb_models.files import read_lines
from atb_models.server.http.access import Access

DEFAULT_PORT = 6006


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """Parse and check. Raises ConfigError, which names the flag."""
    parser = build_parser()
    args = parser.parse(argv)
    if (args.ssl_certfile is None) != (args.ssl_keyfile is None):
        parser.error("--ssl_certfile and --ssl_keyfile go together")
    for name in ("ssl_certfile", "ssl_keyfile"):
        path = getattr(args, name)
        if path is not None and not os.access(path, os.R_OK):
            parser.error(f"--{name} {path}: no such file, or not readable")
    if args.ssl_certfile is not None:
        _check_certificate(args.ssl_certfile, args.ssl_keyfile)
    return args


def build_parser() -> Parser:
    parser = Parser(
        prog="atb-models serve",
        description="Answer requests over HTTP: the OpenAI, TGI, vLLM and MindIE endpoints, and a chat page.",
        allow_abbrev=False,
    )
    model_flags(parser.add_argument_group("model"))
    sizes = parser.add_argument_group("sizes")
    sizes.add_argument("--max_batch_size", type=positive, default=EngineConfig.max_batch_size,
        help="requests at once; more wait")  # fmt: skip
    length_flag(sizes)
    cache_flags(sizes)
    _service_flags(parser.add_argument_group("service"))
    return parser


def _service_flags(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0: all addresses of this machine")
    add("--port", type=_port, default=DEFAULT_PORT, help="port to listen on; 0: any free one")
    name_flag(group)
    add("--api_key", action="append", metavar="KEY", help="a key that clients must send; may be repeated. Better in the"
        f" variable {env.API_KEY} (several with commas) or a file: other users can read a command line"
        f" (default: the keys of {env.API_KEY}, unless --api_key_file is given)")  # fmt: skip
    add("--api_key_file", metavar="FILE", help="a file of such keys, one a line; with --api_key the keys of both, and"
        f" none of {env.API_KEY} (default: none)")  # fmt: skip
    add("--ssl_certfile", metavar="PEM", help="serve HTTPS with this certificate; needs --ssl_keyfile")
    add("--ssl_keyfile", metavar="PEM", help="the certificate's private key, without a password")
    add("--cors_origin", action="append", metavar="ORIGIN", help="origin of web pages that may ask; may be repeated")
    add("--max_queue", type=positive, default=256, help="requests that may wait; further ones get status 429")
    add("--max_body_bytes", type=positive, default=8 << 20, help="largest body; larger ones get status 413")
    add("--request_timeout", type=positive_number, default=600.0, metavar="S", help="seconds for a complete answer")
    add("--drain_timeout", type=positive_number, default=30.0, metavar="S",
        help="seconds that running requests have after SIGTERM or Ctrl-C; a second one ends at once")  # fmt: skip
    add("--restart", action="store_true", help="start the engine again when it, or a rank, has died")
    add("--log_prompts", action="store_true", help="write prompts and answers to the log")


def _check_certificate(certificate: str, key: str) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password="")
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"--ssl_certfile {certificate} and --ssl_keyfile {key} do not work together, in PEM without a password:"
            f" {error}"
        ) from None


def access(args: argparse.Namespace) -> Access:
    """The keys of both flags; without them, those of the variable. Raises ConfigError."""
    keys = [*(args.api_key or []), *_keys_of(args.api_key_file)] or (env.get(env.API_KEY) or "").split(",")
    keys = [key.strip() for key in keys if key.strip()]
    for key in keys:
        if not (key.isascii() and key.isprintable()) or " " in key:
            raise ConfigError("a key must be printable ASCII without blanks, for it is sent in a header")
    if args.api_key and not all(key.strip() for key in args.api_key):
        raise ConfigError("--api_key is empty; leave it out for a service without keys")
    return Access(tuple(keys), tuple(args.cors_origin or ()), args.max_body_bytes)


def _keys_of(path: str | None) -> list[str]:
    if path is None:
        return []
    keys = [line.strip() for line in read_lines(Path(path), f"--api_key_file {path}") if line.strip()]
    if not keys:
        raise ConfigError(f"--api_key_file {path} holds no key")
    return keys


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 5) or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"must be a port from 0 to 65535, not {text!r}")
    return int(text)
