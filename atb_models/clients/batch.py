"""`atb-models batch`: answers a file of requests into another file. An interrupted run can be continued."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tqdm import tqdm

from atb_models import log
from atb_models.clients.backends import BatchBackend, Remote, local
from atb_models.clients.batch_file import URLS, Answers, Request, read_requests
from atb_models.clients.flags import MODEL, SERVER, check_apart, model_of, server_flags, server_of
from atb_models.clients.http import ServerRefusal
from atb_models.command.descriptors import raise_descriptor_limit
from atb_models.command.engine_options import engine_config, model_name
from atb_models.command.exit_status import print_error
from atb_models.command.model_flags import cache_flags, length_flag, model_flags, name_flag
from atb_models.command.parser import Parser
from atb_models.command.values import positive
from atb_models.errors import AtbError, ConfigError
from atb_models.wording import counted

MAX_BATCH_SIZE = 64


def main(words: list[str]) -> int:
    """Answer the requests that have no answer yet. The exit status: 0 if every request has one with status 200."""
    parser = build_parser()
    args = parser.parse(words)
    check_apart(args, parser)
    source, target = Path(args.input), Path(args.output)
    if target.exists() and source.exists() and target.samefile(source):
        raise ConfigError(f"{source} is the input and the output; name another output")
    requests = read_requests(source)
    log.setup()
    raise_descriptor_limit()
    with Answers(target) as answers:
        left = [request for request in requests if request.custom_id not in answers.statuses]
        if len(left) < len(requests):
            print(f"{target} has {len(requests) - len(left)} of {counted(len(requests), 'answer')}", file=sys.stderr)
        unanswered = asyncio.run(_answer(left, answers, args)) if left else []
        return _told(requests, answers, unanswered)


def build_parser() -> Parser:
    parser = Parser(
        prog="atb-models batch",
        description=f"Answer a file of requests in OpenAI's batch form: custom_id, method, url ({' or '.join(URLS)})"
        " and body a line. Run it again to go on where it was ended. Without --url it needs the extra server.",
        allow_abbrev=False,
    )
    parser.add_argument("input", help="requests, one a line")
    parser.add_argument("output", help="answers, one a line, as they arrive; those that it has are not asked again")
    server = parser.add_argument_group(SERVER)
    server_flags(server, default=None)
    model = parser.add_argument_group(MODEL)
    model_flags(model)
    name_flag(model)
    length_flag(model)
    cache_flags(model)
    load = parser.add_argument_group("load")
    load.add_argument("--max_batch_size", type=positive, default=MAX_BATCH_SIZE,
        help="requests at once, here or at the server")  # fmt: skip
    return parser


async def _answer(requests: list[Request], answers: Answers, args: argparse.Namespace) -> list[ServerRefusal]:
    """Answer these requests, --max_batch_size at once. Returns the errors of those that stay without an answer.

    Raises AtbError if no more requests can be answered, or answers written.
    """
    unanswered: list[ServerRefusal] = []
    async with _backend(requests, args) as backend:
        at_once = args.max_batch_size * (1 if args.url else 2)  # so that the engine never waits for this process
        waiting = iter(requests)
        with tqdm(total=len(requests), disable=None, unit="request", file=sys.stderr) as bar:

            async def client() -> None:
                for request in waiting:
                    try:
                        answers.add(request.custom_id, *await backend.post(request.url, request.body))
                    except ServerRefusal as error:
                        unanswered.append(error)
                    bar.update()

            clients = [asyncio.ensure_future(client()) for _ in range(min(at_once, len(requests)))]
            try:
                await asyncio.gather(*clients)
            finally:
                for one in clients:
                    one.cancel()
                await asyncio.gather(*clients, return_exceptions=True)
    return unanswered


@asynccontextmanager
async def _backend(requests: list[Request], args: argparse.Namespace) -> AsyncIterator[BatchBackend]:
    if args.url is not None:
        server = server_of(args)
        await model_of(server)  # reports a wrong key or address before the first request
        yield Remote(server)
        return
    config = engine_config(args, max_batch_size=args.max_batch_size, max_seq_len=args.max_seq_len)
    name = args.model_name or model_name(config)
    for request in requests:
        if (wanted := request.body.get("model", name)) != name:
            raise ConfigError(
                f"the input {args.input}, line {request.line} asks for the model {wanted!r}, this one is {name!r};"
                f" --model_name {wanted} gives it that name"
            )
    async with local(config, name, load_tokenizer=args.load_tokenizer) as backend:
        yield backend


def _told(requests: list[Request], answers: Answers, unanswered: list[ServerRefusal]) -> int:
    """Report the results of the requests; the exit status."""
    counts = answers.counts(requests)
    print(f"{answers.path}: {counts[200]} of {counted(len(requests), 'request')} answered", file=sys.stderr)
    for status, count in sorted(counts.items()):
        if status != 200:
            print_error(f"{counted(count, 'request')} refused with status {status}: {answers.path} says why")
    if unanswered:
        print_error(f"{counted(len(unanswered), 'request')} without an answer, the last for {unanswered[-1]};"
            " the same command asks again")  # fmt: skip
    return 0 if counts[200] == len(requests) else AtbError.exit_status
