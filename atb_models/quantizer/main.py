"""`atb-models quantize`: flags, and the order of the work."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from atb_models import log
from atb_models.command.model_flags import device_flag, trust_flag
from atb_models.command.parser import Parser
from atb_models.errors import ConfigError
from atb_models.fetch import model_folder
from atb_models.quantizer.recipe import CHOICES, GROUPS, STATIC, WHOLE_ROW

FORMATS = ("modelslim", "compressed-tensors")
_UNITS = {"MB": 10**6, "GB": 10**9, "MIB": 1 << 20, "GIB": 1 << 30}


def main(words: list[str]) -> int:
    """Write the checkpoint. The exit status."""
    args = build_parser().parse(words)
    if args.group_size is not None and args.to != "w4a16":
        raise ConfigError(f"--group_size is for --to w4a16; {args.to} has a scale for each output")
    if args.calibration is not None and args.to != STATIC:
        raise ConfigError(f"--calibration is for --to {STATIC}; the activations of {args.to} need none")
    if args.text is not None and args.no_check:
        raise ConfigError("--text is what the check reads, and --no_check leaves the check out")
    log.setup()
    source = model_folder(args.source)
    from atb_models.quantizer.run import run

    run(source, Path(args.target), args)
    return 0


def build_parser() -> Parser:
    parser = Parser(
        prog="atb-models quantize",
        description="Write a checkpoint again with the weights of its linear maps in fewer bits, rounded to the"
        " nearest. Embedding, head, norms, routers and gates stay as they are. Run it again to go on where it was"
        " ended.",
        allow_abbrev=False,
    )
    parser.add_argument("source", metavar="SRC", help="folder of a checkpoint of floats")
    parser.add_argument("target", metavar="DST", help="folder that is made")
    add = parser.add_argument_group("what is written").add_argument
    add("--to", choices=CHOICES, required=True,
        help="w8a8_dynamic: int8 weights, activations int8 by token; w8a16, w4a16: int8 or int4 weights, activations as"
        " floats; w8a8: attention with int8 activations by scales that --calibration gives, the rest as w8a8_dynamic"
        " (default: none, it must be given)")  # fmt: skip
    add("--format", choices=FORMATS, default=FORMATS[0], help="whose files: ModelSlim's or compressed-tensors'")
    add("--group_size", type=_group_size, metavar=f"{{{','.join(map(str, (WHOLE_ROW, *GROUPS)))}}}",
        help="inputs that share a scale in w4a16; -1: all of a row (default: 128)")  # fmt: skip
    add("--float", action="append", dest="floats", metavar="PATTERN",
        help="linear maps that stay as they are, as '*.layers.0.*' or '*.down_proj'; may be repeated (default: none)")
    add("--max_shard_size", type=_size, default="4GB", help="of a file, in MB, GB, MiB or GiB")
    add("--overwrite", action="store_true", help="delete the checkpoint that is in DST")
    add("--calibration", metavar="FILE",
        help="for w8a8: texts like those that the model will read, one a line; a .jsonl file may have token ids"
        " (default: some two hundred short questions and answers)")  # fmt: skip
    group = parser.add_argument_group("what is measured at the end")
    group.add_argument("--no_check", action="store_true", help="do not compare the logits of both checkpoints")
    group.add_argument("--text", metavar="FILE",
        help="the text whose first 512 tokens are read; a .jsonl file has several"
        " (default: as for --calibration)")  # fmt: skip
    device_flag(group)
    trust_flag(group)
    return parser


def _group_size(text: str) -> int:
    if text not in map(str, (WHOLE_ROW, *GROUPS)):
        raise argparse.ArgumentTypeError(f"must be {', '.join(map(str, GROUPS))} or {WHOLE_ROW}, not {text!r}")
    return int(text)


def _size(text: str) -> int:
    """Bytes of a text such as 4GB."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([MG]i?B)", text, re.IGNORECASE)
    size = int(float(match[1]) * _UNITS[match[2].upper()]) if match else 0
    if size < 1:
        raise argparse.ArgumentTypeError(f"must be a size such as 4GB or 500MiB, not {text!r}")
    return size
