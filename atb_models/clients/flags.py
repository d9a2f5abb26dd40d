"""The flags that the clients share: which server they ask."""

from __future__ import annotations

import argparse

from atb_models import env
from atb_models.clients.http import RemoteServer
from atb_models.errors import ConfigError
from atb_models.launcher.args import Parser, positive_number, unknown_flag

SERVER, MODEL = "server", "model, without --url"


def server_flags(group: argparse._ArgumentGroup, *, default: str | None) -> None:
    """--url, without a default where the program can load a model instead."""
    add = group.add_argument
    add("--url", default=default, help="of a server that speaks OpenAI's protocol, as http://127.0.0.1:6006"
        + (f" (default: {default})" if default else "; none: the model is loaded here"))  # fmt: skip
    add("--api_key", metavar="KEY", help=f"better in the variable {env.API_KEY}: other users can read a command line")
    add("--timeout", type=positive_number, default=600.0, metavar="S", help="seconds of a server's silence to wait out")


def server_of(args: argparse.Namespace) -> RemoteServer:
    """The server of --url. Raises ConfigError."""
    key = args.api_key or (env.get(env.API_KEY) or "").split(",")[0].strip()
    if key and not (key.isascii() and key.isprintable()):
        raise ConfigError("a key must be printable ASCII, for it is sent in a header")
    return RemoteServer(args.url, key or None, args.timeout)


def parsed(parser: Parser, words: list[str]) -> argparse.Namespace:
    """Raises ConfigError for a flag that is not known, naming it."""
    args, extra = parser.parse_known_args(words)
    if extra:
        parser.error(unknown_flag(extra[0], parser))
    return args


def check_apart(args: argparse.Namespace, parser: Parser) -> None:
    """Raises ConfigError for flags of a model beside --url and of a server without it, as the titles of their groups
    tell, and under torchrun, whose ranks would all ask."""
    if env.get("RANK") is not None:
        raise ConfigError("this program starts its own ranks (--tp N); run it without torchrun")
    title, why = (SERVER, "is of a server and needs --url") if args.url is None else (
        MODEL, f"is of a model that is loaded here, but --url {args.url} asks a server; give one of them")  # fmt: skip
    (group,) = (group for group in parser._action_groups if group.title == title)
    for action in group._group_actions:
        if getattr(args, action.dest) != action.default:
            raise ConfigError(f"--{action.dest} {why}")


async def model_of(server: RemoteServer) -> str:
    """The name of the server's first model. Raises ServerRefusal, so for a wrong key, or NoAnswer."""
    listed = await server.json("/v1/models")
    try:
        return str(listed["data"][0]["id"])
    except (KeyError, IndexError, TypeError):
        raise ConfigError(f"{server.url} lists no models; name one with --model") from None
