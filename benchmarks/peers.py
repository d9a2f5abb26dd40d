"""This engine beside others on the CPU: the same random model, in turns, beside the machine's limits.

    python benchmarks/peers.py [--llama NAME=FOLDER ...] [--transformers PYTHON] [--vllm PYTHON] [--docs docs]
        [--shape deepseek]

The model has Qwen1.5-MoE-A2.7B's width, which all of these can run, or DeepSeek-MoE-16B's, which ik_llama.cpp cannot.
An engine that has no such model, or no such weights, is left out. The model is written as safetensors and as GGUF
(`pip install -e '.[peers]'`). FOLDER holds llama-bench and llama-batched-bench of llama.cpp or of a fork; PYTHON is an
interpreter that has the peer installed. --docs writes the table and a picture into speed.md and speed.zh.md there.
--check compares greedy tokens and perplexities (llama-perplexity in FOLDER) and measures nothing.

The exit status is 1 where an engine failed or the check found a difference; what was measured is still reported.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from native import Machine

from atb_models import env
from atb_models.ops.native.library import active, load
from peers.cases import CASES, Work
from peers.check import check
from peers.checkpoint import write_checkpoint
from peers.dtypes import DTYPES
from peers.engines import Engine, LlamaCpp, Worker, gguf_path, say
from peers.gguf_file import write_gguf
from peers.measure import OURS, measure
from peers.plot import draw
from peers.report import Subject, check_marks, table, write_docs
from peers.shapes import SHAPES

ROUND = 256  # vocabularies are multiples of this


def main() -> int:
    parser = argument_parser()
    args = parser.parse_args()
    level = active().level
    if level is None:
        parser.error(f"the limits need the CPU library: {active()}")
    if args.docs:
        try:
            check_marks(args.docs, args.shape)
        except (OSError, ValueError) as error:
            parser.error(str(error))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the engines are ended
    torch.set_num_threads(args.threads)
    name, config = SHAPES[args.shape]
    if args.config:
        published, config = config, json.loads(args.config.read_text(encoding="utf-8"))
        if config.get("model_type") != published["model_type"]:
            parser.error(f"{args.config} has model_type {config.get('model_type')!r}, not {published['model_type']!r}")
    ours = Worker(OURS, sys.executable, "run_ours.py", args.threads, args.timeout, quantizes=True)
    peers = peers_of(args)
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        of_layers = config["num_hidden_layers"]
        # the head keeps the share of the time that it has in the whole model
        vocabulary = args.vocabulary or config["vocab_size"] * args.layers // of_layers // ROUND * ROUND
        config = config | {"num_hidden_layers": args.layers, "vocab_size": vocabulary}
        write_model(folder, config, args.dtype if args.llama else [])
        if args.check:
            return run_check(ours, peers, folder, args.dtype)
        machine = Machine(load(level.name), args.threads)
        measured = [measure([ours, *peers], folder, dtype, CASES, args.rounds, machine) for dtype in args.dtype]
    subject = Subject(args.shape, name, Work(config), of_layers, processor(), level.name, args.threads)
    print(table(measured, subject, "en"))
    if args.docs:
        write_docs(args.docs, measured, subject, draw(measured, subject))
    return 1 if any(one.failures for one in measured) else 0


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama", type=named_folder, action="append", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--transformers", metavar="PYTHON", help="interpreter with a transformers that has qwen2_moe")
    parser.add_argument("--vllm", metavar="PYTHON", help="interpreter with vLLM for CPU")
    parser.add_argument("--dtype", type=dtypes, default=list(DTYPES), help=f"some of {','.join(DTYPES)}")
    parser.add_argument("--shape", choices=SHAPES, default="qwen", help="whose width the model has")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, help="tokens; as much of the model's as --layers is of its layers")
    parser.add_argument("--config", type=Path, help="a config.json in the place of the published one of --shape")
    parser.add_argument("--rounds", type=int, default=3)
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--threads", type=int, default=env.get("OMP_NUM_THREADS") or cores)
    parser.add_argument("--folder", type=Path, help="keeps the model, for the next run; else it is temporary")
    parser.add_argument("--timeout", type=float, default=600, help="seconds that an engine has for an answer")
    parser.add_argument("--docs", type=Path, help="folder of speed.md and speed.zh.md, where the table is written")
    parser.add_argument("--check", action="store_true", help="compare what the engines compute, measure nothing")
    return parser


def named_folder(text: str) -> tuple[str, Path]:
    name, equals, folder = text.partition("=")
    if not (name and equals and folder):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=FOLDER")
    return name, Path(folder)


def dtypes(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in DTYPES]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(DTYPES)}")
    return names


def peers_of(args: argparse.Namespace) -> list[Engine]:
    peers: list[Engine] = [LlamaCpp(name, folder, args.threads, args.timeout) for name, folder in args.llama]
    for name in "transformers", "vllm":
        if python := getattr(args, name):
            peers.append(Worker(name, python, f"run_{name}.py", args.threads, args.timeout))
    return peers


def write_model(folder: Path, config: dict[str, Any], gguf_dtypes: list[str]) -> None:
    """What of the model's files is not in the folder yet. Each is renamed to its name when it is complete."""
    done = folder / "written.json"
    if not done.is_file() or json.loads(done.read_text(encoding="utf-8")) != config:
        say(f"writing the model to {folder}")
        for old in folder.glob("*.gguf"):
            old.unlink()
        done.unlink(missing_ok=True)
        write_checkpoint(folder, config)
        done.write_text(json.dumps(config), encoding="utf-8")
    for dtype in gguf_dtypes:
        file = gguf_path(folder, dtype)
        if not file.is_file():
            say(f"writing {file}")
            part = file.with_suffix(".part")
            write_gguf(folder, part, DTYPES[dtype].kind)
            part.replace(file)


def run_check(ours: Worker, peers: list[Engine], folder: Path, dtypes: list[str]) -> int:
    all_hold = True
    for holds, line in check(ours, peers, folder, dtypes):
        all_hold = all_hold and holds
        print(f"{'same' if holds else 'DIFFERENT'}: {line}", flush=True)
    return 0 if all_hold else 1


def processor() -> str:
    found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    return found.group(1) if found else "an unnamed processor"


if __name__ == "__main__":
    sys.exit(main())
