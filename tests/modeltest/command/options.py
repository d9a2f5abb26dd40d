"""The flags after the words."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from atb_models.command.values import json_object
from atb_models.errors import ConfigError
from atb_models.wording import shown
from modeltest.command.cases import Options, Run

DEVICES = ("npu", "cuda", "cpu")
MOST_DIGITS = 18  # of a number; Python refuses to read one of thousands
LOAD_FORMATS = ("auto", "dummy")
QUANTIZE = ("w8a16", "w4a16", "w8a8_dynamic")
KV_DTYPES = ("auto", "int8")
# Modes of which a flag is; the others refuse it.
QUESTIONS, CODE, SPEED, ALL = "full_ modes", "full_HumanEval", "performance modes", "all modes"
ROOFLINE = "performance and performance_single"


@dataclass(frozen=True)
class Flag:
    """metavar: of its value, "" for a switch. modes: where it has a meaning. en, zh: its help."""

    name: str
    metavar: str
    parse: Callable[[str], Any]
    modes: str
    en: str
    zh: str


def _path(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("needs a name, not nothing")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise argparse.ArgumentTypeError(f"{text!r} is in the home folder of a user there is not") from None


def _count(text: str) -> int:
    return _whole(text, 1)


def _whole(text: str, low: int = 0) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > MOST_DIGITS or int(text) < low:
        raise argparse.ArgumentTypeError(f"must be a whole number of {low} or more, not {shown(text)}")
    return int(text)


def _one_of(allowed: tuple[str, ...]) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in allowed:
            raise argparse.ArgumentTypeError(f"must be one of {', '.join(allowed)}, not {text!r}")
        return text

    return parse


FLAGS = (
    Flag("limit", "N", _count, QUESTIONS, "the first N questions only (default: all)", "只做前 N 道题（默认：全部）"),
    Flag("resume", "", str, QUESTIONS, "go on where an interrupted run of the same settings ended",
         "从相同设置的中断运行处继续"),
    Flag("data_dir", "DIR", _path, QUESTIONS, "folder of the question files (default: data/<set> beside run.sh)",
         "题目文件所在目录（默认：run.sh 旁的 data/<数据集>）"),
    Flag("allow_code_execution", "", str, CODE, "run the code that the model writes, in a sandbox",
         "允许在沙箱中运行模型生成的代码"),
    Flag("seed", "N", _whole, SPEED, "of the random token ids (default: 1)", "随机 token 的种子（默认：1）"),
    Flag("chip", "NAME", str, ROOFLINE, "chip whose roofline is compared (default: the one found)",
         "用于对比 roofline 的芯片（默认：检测到的芯片）"),
    Flag("chips_file", "JSON", str, ROOFLINE, "more chips for --chip, as run_pa.py reads them (default: none)",
         "供 --chip 使用的更多芯片，格式同 run_pa.py（默认：无）"),
    Flag("no_plot", "", str, SPEED, "draw no picture", "不画图"),
    Flag("output_dir", "DIR", _path, ALL, "folder of the results (default: outputs beside run.sh)",
         "结果目录（默认：run.sh 旁的 outputs）"),
    Flag("device", "NAME", _one_of(DEVICES), ALL, "npu, cuda or cpu (default: the first that is there)",
         "npu、cuda 或 cpu（默认：第一个可用的）"),
    Flag("load_format", "NAME", _one_of(LOAD_FORMATS), ALL,
         "auto, or dummy: random weights; texts still need a tokenizer (default: auto)",
         "auto，或 dummy：随机权重；提问文本仍需分词器（默认：auto）"),
    Flag("quantize", "NAME", _one_of(QUANTIZE), ALL,
         "w8a16, w4a16 or w8a8_dynamic: quantise the weights while they are loaded (default: none)",
         "w8a16、w4a16 或 w8a8_dynamic：加载时量化权重（默认：无）"),
    Flag("kv_dtype", "NAME", _one_of(KV_DTYPES), ALL,
         "auto, or int8: keys and values as integers (default: auto, the dtype of the run)",
         "auto，或 int8：以整数保存 KV cache（默认：auto，即运行的 dtype）"),
    Flag("config_overrides", "JSON", json_object, ALL,
         'fields of config.json, as {"num_hidden_layers": 4} (default: none)',
         'config.json 的字段，如 {"num_hidden_layers": 4}（默认：无）'),
    Flag("kv_blocks", "N", _count, ALL, "blocks of the KV cache (default: what memory allows)",
         "KV cache 块数（默认：由内存决定）"),
    Flag("prefix_cache", "", str, ALL, "reuse equal prompt beginnings", "复用相同的提示词开头"),
)  # fmt: skip


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (--help lists the options)")


def split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words, and from the first that starts with two dashes on the flags."""
    first = next((place for place, word in enumerate(words) if word.startswith("--")), len(words))
    return list(words[:first]), list(words[first:])


def parse(flags: Sequence[str], run: Run) -> Options:
    """The options of a run. Raises ConfigError for one that is unknown, has a bad value or is of another mode."""
    parser = _Parser(prog="run.sh", add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    for flag in FLAGS:
        if flag.metavar:
            parser.add_argument(f"--{flag.name}", type=flag.parse, metavar=flag.metavar)
        else:
            parser.add_argument(f"--{flag.name}", action="store_true")
    found, more = parser.parse_known_args(list(flags))
    if more:
        parser.error(_unknown(more[0]))
    values = vars(found)
    for flag in FLAGS:
        if flag.name in values and not _is_of(flag, run):
            raise ConfigError(f"--{flag.name} is an option of {flag.modes}, not of {run.mode}")
    return Options(**values)


def _is_of(flag: Flag, run: Run) -> bool:
    meant = {
        QUESTIONS: run.set is not None,
        CODE: run.set == "HumanEval",
        SPEED: run.is_performance,
        ROOFLINE: run.mode in ("performance", "performance_single"),
        ALL: True,
    }
    return meant[flag.modes]


def _unknown(word: str) -> str:
    if not word.startswith("--"):
        return f"unexpected {word!r}: options come after the words, each with its value"
    near = difflib.get_close_matches(word.split("=")[0], [f"--{flag.name}" for flag in FLAGS], n=1)
    return f"unknown option {word.split('=')[0]}" + (f"; did you mean {near[0]}?" if near else "")
