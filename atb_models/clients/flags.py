"""The flags that the clients share: those of the server."""

from __future__ import annotations

import argparse

from atb_models import env
from atb_models.clients.http import RemoteServer
from atb_models.command.parser import Parser
from atb_models.command.values import positive_number
from atb_models.errors import ConfigError

SERVER, MODEL = "server", "model, without --url"


def server_flags(group: argparse._ArgumentGroup, *, default: str | None) -> None:
    """--url and what goes with it. No default: the program can load a model itself."""
    add = group.add_argument
    add("--url", default=default, help="a server that speaks OpenAI's protocol, such as http://127.0.0.1:6006"
        + ("" if default else " (default: none, the model is loaded here)"))  # fmt: skip
    add("--api_key", metavar="KEY", help=f"key of the server; better in the variable {env.API_KEY}, for other users"
        " can read a command line (default: that variable's first key)")  # fmt: skip
    add("--timeout", type=positive_number, default=600.0, metavar="S", help="longest wait for data from the server")


def server_model_flag(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--model", metavar="NAME", help="one of the server's models (default: its first)")


def server_of(args: argparse.Namespace) -> RemoteServer:
    """The server of --url. Raises ConfigError."""
    key = (env.get(env.API_KEY) or "").split(",")[0].strip() if args.api_key is None else args.api_key
    if key and not (key.isascii() and key.isprintable()):
        raise ConfigError("a key must be printable ASCII, for it is sent in a header")
    return RemoteServer(args.url, key or None, args.timeout)


def check_apart(args: argparse.Namespace, parser: Parser) -> None:
    """Raises ConfigError for flags of a model with --url, for flags of a server without it, and under torchrun.

    The title of a flag's group says what it belongs to. Under torchrun every rank would send the requests.
    """
    if env.get("RANK") is not None:
        raise ConfigError("this program starts its own ranks (--tp N); run it without torchrun")
    title, why = (SERVER, "belongs to a server and needs --url") if args.url is None else (
        MODEL, f"belongs to a model that is loaded here, and --url {args.url} to a server; give one")  # fmt: skip
    (group,) = (group for group in parser._action_groups if group.title == title)
    for action in group._group_actions:
        if getattr(args, action.dest) != action.default:
            raise ConfigError(f"--{action.dest} {why}")


async def model_of(server: RemoteServer) -> str:
    """The name of the server's first model. Raises ServerRefusal, also for a wrong key, or NoAnswer."""
    listed = await server.json("/v1/models")
    try:
        return str(listed["data"][0]["id"])
    except (KeyError, IndexError, TypeError):
        raise ConfigError(f"{server.url} lists no models; name one with --model") from None
