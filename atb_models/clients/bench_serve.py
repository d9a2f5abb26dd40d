"""`atb-models bench serve`: measures a server under a load that flags describe."""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from atb_models.clients.bench_report import LatencyTargets, summary, table
from atb_models.clients.flags import model_of, server_flags, server_model_flag, server_of
from atb_models.clients.http import RemoteServer
from atb_models.clients.jsonl import read_objects
from atb_models.clients.load import Body, Outcome, arrivals, ask_once, closed_loop, open_loop, random_bodies
from atb_models.command.descriptors import raise_descriptor_limit
from atb_models.command.parser import Parser
from atb_models.command.values import json_object, positive, positive_number
from atb_models.errors import AtbError, ConfigError
from atb_models.files import check_file, written_whole

DEFAULT_URL = "http://127.0.0.1:6006"
NUM_REQUESTS, INPUT_LEN, OUTPUT_LEN = 100, 128, 32


def main(words: list[str]) -> int:
    """Measure, print the table, write the file. The exit status: 1 if no request was answered."""
    args = parse_args(words)
    raise_descriptor_limit()
    server, bodies = server_of(args), _bodies(args)
    found = asyncio.run(_measure(server, bodies, args))
    print(table(found))
    if args.output is not None:
        with written_whole(Path(args.output)) as path:
            path.write_text(json.dumps({"flags": _flags(args), **found}, indent=2, ensure_ascii=False) + "\n", "utf-8")
    if not found["completed"]:
        raise AtbError("no request was answered")
    return 0


def parse_args(words: list[str]) -> argparse.Namespace:
    """Raises ConfigError, which names the flag."""
    parser = build_parser()
    args = parser.parse(words)
    if (args.rate is None) == (args.concurrency is None):
        parser.error("give either --rate or --concurrency")
    if args.dataset is not None and (args.input_len or args.output_len):
        parser.error("--dataset brings its own prompts: leave out --input_len and --output_len (max_tokens is a field)")
    if args.output is not None:
        check_file(Path(args.output), "--output")
    return args


def build_parser() -> Parser:
    parser = Parser(
        prog="atb-models bench serve",
        description="Measure a server that speaks OpenAI's protocol. A table on stdout, with --output all numbers.",
        allow_abbrev=False,
    )
    server = parser.add_argument_group("server")
    server_flags(server, default=DEFAULT_URL)
    server_model_flag(server)
    add = parser.add_argument_group("load").add_argument
    add("--rate", type=positive_number, help="requests a second on average, at random times; answers are not awaited")
    add("--concurrency", type=positive, help="number of clients; each sends its next request when it has its answer")
    add("--num_requests", type=positive,
        help=f"requests to send (default: {NUM_REQUESTS}, of a --dataset as many as it has)")  # fmt: skip
    add("--input_len", type=positive, help=f"random token ids of a prompt (default: {INPUT_LEN})")
    add("--output_len", type=positive, help=f"tokens of an answer, EOS is ignored (default: {OUTPUT_LEN})")
    add("--dataset", metavar="JSONL", help="requests in place of random ones: a line is a body with prompt or messages")
    add("--extra_body", type=json_object, metavar="JSON",
        help='fields of every request, as {"temperature": 0}; null takes one out, as {"ignore_eos": null}')  # fmt: skip
    add("--seed", type=int, default=0, help="seed of random prompts and times")
    judge = parser.add_argument_group("result").add_argument
    judge("--slo_ttft_ms", type=positive_number, help="goodput: a request is good if its first token took at most this")
    judge("--slo_itl_ms", type=positive_number, help="and each further token at most this long on average")
    judge("--output", metavar="FILE", help="write all numbers as JSON")
    return parser


def _bodies(args: argparse.Namespace) -> list[Body]:
    """The requests, without the fields that all have in common. Raises ConfigError."""
    if args.dataset is None:
        lengths = args.input_len or INPUT_LEN, args.output_len or OUTPUT_LEN
        return list(random_bodies(args.num_requests or NUM_REQUESTS, *lengths, args.seed))
    numbered = read_objects(Path(args.dataset), "--dataset")
    for number, body in numbered:
        if ("prompt" in body) == ("messages" in body):
            raise ConfigError(f"--dataset {args.dataset}, line {number} must have either prompt or messages")
    bodies = itertools.cycle(body for _, body in numbered)
    return list(itertools.islice(bodies, args.num_requests or len(numbered)))


async def _measure(server: RemoteServer, bodies: list[Body], args: argparse.Namespace) -> dict[str, Any]:
    common = {"model": args.model or await model_of(server), "stream": True, "stream_options": {"include_usage": True}}
    merged = [common | body | (args.extra_body or {}) for body in bodies]
    sent = [{name: value for name, value in body.items() if value is not None} for body in merged]
    with tqdm(total=len(sent), disable=None, unit="request", file=sys.stderr) as bar:

        async def ask(body: Body, due_s: float) -> Outcome:
            outcome = await ask_once(server, body, due_s)
            bar.update()
            return outcome

        if args.rate is None:
            outcomes = await closed_loop(sent, args.concurrency, ask)
        else:
            outcomes = await open_loop(sent, arrivals(args.rate, len(sent), args.seed), ask)
    return summary(outcomes, LatencyTargets(args.slo_ttft_ms, args.slo_itl_ms))


def _flags(args: argparse.Namespace) -> dict[str, Any]:
    return {name: value for name, value in vars(args).items() if name != "api_key"}
