"""The flags of run_pa: MindIE's names and defaults, ours in the same spelling, the unsupported refused by name."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

from atb_models import env
from atb_models.command.model_flags import Group, cache_flags, model_flags
from atb_models.command.parser import Parser, typed
from atb_models.command.sampling import sampling_flags
from atb_models.command.values import AUTO, positive
from atb_models.errors import ConfigError
from atb_models.launcher.inputs import DEFAULT_MAX_INPUT_LENGTH, Lengths, check_lengths
from atb_models.published import NAMES

DEFAULT_QUESTION = "What's deep learning?"
FORMATS = ("text", "json", "dot")
LOOKING = "looking at the model instead of running it, or while it runs"  # title of a group of flags

# Flags of the original that are refused whatever their value, with the reason.
REFUSED = {
    "input_dict": "LoRA adapters are not supported; give the prompts with --input_texts",
    "lora_modules": "LoRA adapters are not supported",
    "kw_args": "there are no free engine options; every option has its own flag",
    "enable_atb_torch": "there is one graph builder only; leave the flag out",
    "distributed_enable": "several hosts are not supported; the ranks of one host need no flag",
    "is_embedding_model": "embedding models are not supported",
}
# Flags of the original of which only these values mean something here.
FIXED = {
    "dp": ((AUTO, 1), "attention data parallelism is not supported; use --tp"),
    "moe_tp": ((AUTO, 1), "experts are always cut by their width over all ranks; leave the flag out"),
    "moe_ep": ((AUTO, 1), "expert parallelism is not supported; experts are cut by their width over all ranks"),
    "pp": ((AUTO, 1), "pipeline parallelism is not supported; use --tp"),
    "sp": ((AUTO, 1), "sequence parallelism is not supported; use --tp"),
    "cp": ((AUTO, 1), "context parallelism is not supported; use --tp"),
    "microbatch_size": ((AUTO, 1), "micro batches belong to pipeline parallelism, which is not supported"),
    "max_loras": ((0,), "LoRA adapters are not supported"),
    "max_lora_rank": ((0,), "LoRA adapters are not supported"),
}


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """Parse and check run_pa's arguments. Raises ConfigError, which names the flag."""
    parser = build_parser()
    args, extra = parser.parse_known_intermixed_args(list(argv))
    parser.refuse(extra, word_hint=": the model path was given already")
    if "" in (args.weight_path, args.model_path):
        parser.error("the model path is empty; leave it out for the embedded checkpoint")
    if args.weight_path and args.model_path and args.weight_path != args.model_path:
        parser.error(f"two model paths: {args.weight_path!r} and --model_path {args.model_path!r}")
    args.model_path = args.model_path or args.weight_path
    if args.input_file and not args.is_chat_model:
        parser.error("--input_file holds conversations and needs --is_chat_model")
    if args.system_prompt is not None and (not args.is_chat_model or args.input_file or args.input_ids):
        parser.error("--system_prompt stands before --input_texts as chats: it needs --is_chat_model, and neither"
            " --input_file nor --input_ids")  # fmt: skip
    if not args.load_tokenizer and (args.is_chat_model or not args.input_ids):
        parser.error("--load_tokenizer False leaves no way to read text; give token ids with --input_ids, not a chat")
    if args.do_sample and args.temperature == 0:
        parser.error("--do_sample asks for sampling, --temperature 0 for greedy decoding")
    _check_look(args, parser)
    _check_overrides(args)
    if args.max_position_embeddings is not None:
        check_lengths(typed(args, Lengths), args.max_position_embeddings, "--max_position_embeddings")
    return args


def build_parser(prog: str = "run_pa.py") -> Parser:
    """The parser; `refused flags` are in it, so that a test can compare it with the README's table."""
    what = "Paged-attention inference of a mixture-of-experts model. Answers on stdout, log on stderr."
    parser = _parser_of_a_model(prog, what)
    _input_flags(parser.add_argument_group("input"))
    _size_flags(parser.add_argument_group("sizes"))
    sampling_flags(parser.add_argument_group("decoding (greedy unless one of these asks otherwise)"))
    looking = parser.add_argument_group(LOOKING)
    _look_switches(looking)
    _format_flag(looking)
    _graph_flags(looking)
    _chip_flags(looking)
    _refused_flags(parser.add_argument_group("flags of MindIE's run_pa that are refused, with the reason"))
    return parser


def plan_parser(prog: str, description: str | None) -> Parser:
    """The flags of run_pa.py that a plan needs, for the help of `atb-models plan`."""
    return _look_parser(prog, description, _chip_flags)


def graph_parser(prog: str, description: str | None) -> Parser:
    """The flags of run_pa.py that printing a graph needs, for the help of `atb-models graph`."""
    return _look_parser(prog, description, _graph_flags)


def _look_parser(prog: str, description: str | None, own_flags: Callable[[Group], None]) -> Parser:
    parser = _parser_of_a_model(prog, description)
    parser.epilog = f"In place of a folder, the name of a published model: {', '.join(NAMES)}"
    _size_flags(parser.add_argument_group("sizes"))
    looking = parser.add_argument_group(LOOKING)
    _format_flag(looking)
    own_flags(looking)
    return parser


def _parser_of_a_model(prog: str, description: str | None) -> Parser:
    parser = Parser(prog=prog, description=description, allow_abbrev=False)
    parser.add_argument("weight_path", nargs="?", default=None, help="the same as --model_path")
    model_flags(parser.add_argument_group("model"))
    return parser


def _input_flags(group: Group) -> None:
    add = group.add_argument
    add("--input_texts", nargs="+", metavar="TEXT", default=[DEFAULT_QUESTION],
        help="one request each; a file's name stands for its content")  # fmt: skip
    add("--input_ids", nargs="+", type=_token_ids, metavar="IDS",
        help="one request each, as 1,15,27; taken before --input_texts")  # fmt: skip
    add("--input_file", metavar="JSONL", help="one conversation a line; before all others, needs --is_chat_model")
    add("--is_chat_model", action="store_true", help="a text is a user's turn of a conversation")
    add("--system_prompt", metavar="TEXT", help="with --is_chat_model: the system's text before each of --input_texts")
    add("--stream", action="store_true", help="print answers as they come")


def _size_flags(group: Group) -> None:
    add = group.add_argument
    add("--max_batch_size", type=positive, default=1, help="requests at once; a single input is copied that often")
    add("--max_input_length", type=positive, help="prompt tokens planned for; a longer prompt is run, with a warning"
        f" (default: {DEFAULT_MAX_INPUT_LENGTH})")  # fmt: skip
    add("--max_output_length", type=positive, default=20, help="new tokens of a request")
    add("--max_prefill_batch_size", type=positive,
        help="full prompts of a step: the automatic --max_prefill_tokens is n times input plus output")  # fmt: skip
    cache_flags(group)


def _look_switches(group: Group) -> None:
    add = group.add_argument
    add("--plan", action="store_true", help="print what the model needs and how fast it can be, from config.json alone;"
        " --model_path may be the name of a published model")  # fmt: skip
    add("--print_graph", action="store_true", help="print the operations of a prefill and of a decode step of a rank")
    add("--profile", action="store_true", help="time each operation of the run: a table on stderr, files in"
        " PROFILING_FILEPATH")  # fmt: skip


def _format_flag(group: Group) -> None:
    group.add_argument("--format", choices=FORMATS, default=FORMATS[0],
        help="of --plan and --print_graph; dot: of --print_graph only")  # fmt: skip


def _graph_flags(group: Group) -> None:
    add = group.add_argument
    add("--svg", metavar="FILE", help="with --print_graph: draw the graphs, folded by layer, to this file")
    add("--all_layers", action="store_true", help="with --print_graph: every layer, equal ones too")


def _chip_flags(group: Group) -> None:
    add = group.add_argument
    add("--chip", metavar="NAME", help="with --plan: the chip to price in full, or all; with --profile: the chip whose"
        " roofline is compared")  # fmt: skip
    add("--chips_file", metavar="JSON", help="more chips for --chip; see the README")


def _refused_flags(group: Group) -> None:
    for name, reason in REFUSED.items():
        group.add_argument(f"--{name}", nargs="*", action=_Refuse, default=argparse.SUPPRESS, help=reason)
    for name, (values, reason) in FIXED.items():
        group.add_argument(f"--{name}", action=_Only, default=values[0], help=reason)


class _Refuse(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        raise ConfigError(f"--{self.dest} is refused: {self.help}")


class _Only(argparse.Action):
    def __call__(self, _: object, namespace: argparse.Namespace, text: object, *__: object) -> None:
        values, reason = FIXED[self.dest]
        if str(text) not in map(str, values):
            raise ConfigError(f"--{self.dest} {text} is refused: {reason}")
        setattr(namespace, self.dest, int(str(text)))


def _token_ids(text: str) -> list[int]:
    try:
        ids = [int(part) for part in text.split(",")]
    except ValueError:
        ids = [-1]
    if min(ids) < 0:
        raise argparse.ArgumentTypeError(f"must be token numbers joined by commas, not {text!r}")
    return ids


def _check_look(args: argparse.Namespace, parser: Parser) -> None:
    """The flags of looking go with one another only as their help says."""
    chosen = [name for name in ("plan", "print_graph", "profile") if getattr(args, name)]
    if len(chosen) > 1:
        parser.error(f"--{chosen[0]} and --{chosen[1]} are two different things; give one of them")
    if args.profile and args.graph_capture:
        parser.error("--graph_capture launches a decode step as a whole, --profile times each operation; give one of"
            " them")  # fmt: skip
    args.profile = args.profile or (not chosen and not args.graph_capture and env.get("ATB_PROFILING_ENABLE"))
    goes_with = {
        "format": ("plan", "print_graph"),
        "svg": ("print_graph",),
        "all_layers": ("print_graph",),
        "chip": ("plan", "profile"),
        "chips_file": ("plan", "profile"),
    }
    for flag, wanted in goes_with.items():
        if getattr(args, flag) != parser.get_default(flag) and not any(getattr(args, name) for name in wanted):
            parser.error(f"--{flag} goes with {' or '.join(f'--{name}' for name in wanted)} only")
    if args.plan and args.format == "dot":
        parser.error("--format dot is of --print_graph; a plan is text or json")


def _check_overrides(args: argparse.Namespace) -> None:
    """--max_position_embeddings is one of the overrides; giving both different values is a contradiction."""
    limit = args.max_position_embeddings
    other = (args.config_overrides or {}).get("max_position_embeddings", limit)
    if limit is not None and other != limit:
        raise ConfigError(f"--max_position_embeddings {limit} contradicts {other!r} in --config_overrides")
