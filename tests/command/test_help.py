"""--help of every command: it needs no optional package, shows the defaults that hold, and says one thing one way."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from atb_models.cli import COMMANDS
from atb_models.clients import batch, bench_serve, chat
from atb_models.command import extras
from atb_models.command.engine_options import engine_config
from atb_models.command.parser import Parser
from atb_models.launcher import args as launcher
from atb_models.launcher.inputs import DEFAULT_MAX_INPUT_LENGTH
from atb_models.quantizer import main as quantize
from atb_models.sampling_params import SamplingParams
from atb_models.sampling_table import FIELDS
from atb_models.server import args as serve
from atb_models.wording import install_command

PARSERS = {
    "run": launcher.build_parser("atb-models run"),
    "plan": launcher.plan_parser("atb-models plan", ""),
    "graph": launcher.graph_parser("atb-models graph", ""),
    "serve": serve.build_parser(),
    "chat": chat.build_parser(),
    "batch": batch.build_parser(),
    "quantize": quantize.build_parser(),
    "bench serve": bench_serve.build_parser(),
}
ALL = (*COMMANDS, "bench serve", "modeltest compare", "modeltest report", "")
# Flags of one name that are two things.
TWO_THINGS = {
    "--api_key": "the server's own, or the one that a client sends",
    "--format": "of what is printed, or of the files that are written",
    "--max_batch_size": "a single input of `run` is copied",
    "--seed": "of sampling, or of a benchmark's prompts",
    **dict.fromkeys(
        ("--temperature", "--top_k", "--top_p", "--min_p", "--repetition_penalty", "--presence_penalty",
         "--frequency_penalty"), "`run` is greedy, clients leave the default to the model",
    ),
    "--url": "needed, or in place of a model",
}  # fmt: skip
OF_TOOLS = {"test", "peers"}  # extras that no command needs
# A process in which nothing of the extras can be imported.
WITHOUT_EXTRAS = """
import sys
blocked = {blocked!r}
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in blocked:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocked())
sys.argv[0] = "atb-models"
from atb_models.cli import main
sys.exit(main({words!r}))
"""


def without_extras(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    blocked = [name for modules in extras.MODULES.values() for name in modules]
    program = WITHOUT_EXTRAS.format(blocked=blocked, words=list(words))
    return subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("command", ALL)
def test_help_needs_no_extra(root: Path, command: str) -> None:
    ended = without_extras(root, *command.split(), "--help")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert re.match(f"usage: (atb-models |){command}".rstrip() + r"\b", ended.stdout), ended.stdout


def test_a_missing_extra_is_named_with_the_command_that_installs_it(root: Path) -> None:
    ended = without_extras(root, "serve")
    assert ended.returncode == 1
    assert ended.stderr == (
        f"atb-models: error: {sys.executable} has no module uvicorn; the extra server brings it:"
        f" {install_command('server')}\n"
    )


def test_every_extra_is_known_by_its_modules(root: Path) -> None:
    project = (root / "pyproject.toml").read_text("utf-8").split("[project.optional-dependencies]")[1].split("\n[")[0]
    listed = dict(re.findall(r"^(\w+) = \[(.*?)\]$", project, re.MULTILINE | re.DOTALL))
    assert set(extras.MODULES) == set(listed) - OF_TOOLS
    for extra in extras.MODULES:
        for package in re.findall(r'"(\w+)[><=]', listed[extra]):
            assert extras.extra_of(package) in (extra, None if package == "torch" else extra), package


def flags(command: str) -> dict[str, argparse.Action]:
    """The flags of a command that take a value; the refused ones of MindIE are left out."""
    found = {action.option_strings[0]: action for action in PARSERS[command]._actions if action.option_strings}
    return {name: one for name, one in found.items() if one.nargs != 0 and one.default is not argparse.SUPPRESS}


def shown(parser: Parser) -> dict[str, str]:
    """What the printed help has of each flag, in one line."""
    parts = re.split(r"\n  (?:-h, )?(--\w+)", parser.format_help().split("\noptions:")[1])
    return {name: re.sub(r"\s+", " ", text) for name, text in zip(parts[1::2], parts[2::2], strict=True)}


@pytest.mark.parametrize("command", PARSERS)
def test_every_flag_shows_the_default_that_holds(command: str) -> None:
    printed = shown(PARSERS[command])
    for name, action in flags(command).items():
        (said,) = re.findall(r"\(default: ((?:[^()]|\([^()]*\))*)\)", printed[name])
        if action.default is not None:
            real = ", ".join(action.default) if isinstance(action.default, list) else action.default
            assert said == (f"{real:g}" if isinstance(real, float) else str(real)), name


@pytest.mark.parametrize("command", ["run", "serve", "chat", "batch"])
def test_defaults_that_are_none_to_the_parser(command: str) -> None:
    """What the help says of them is what the engine gets."""
    parser = PARSERS[command]
    args = parser.parse_args(["a", "b"] if command == "batch" else [])
    config = engine_config(args, max_batch_size=1)
    printed = shown(parser)
    assert "(default: on; off in a benchmark)" in printed["--prefix_cache"] and config.prefix_cache
    assert "the example scripts as many as ASCEND_RT_VISIBLE_DEVICES names, which are 0 to 7" in printed["--tp"]
    assert "under torchrun as many as it has started; else 1 (default: -1)" in printed["--tp"]
    assert config.tp == 1
    assert "(default: the embedded toy checkpoint)" in printed["--model_path"] and config.model_path is None
    assert "(default: the first that is there" in printed["--device"] and config.device is None


def test_numbers_that_are_none_to_the_parser() -> None:
    run, bench = shown(PARSERS["run"]), shown(PARSERS["bench serve"])
    assert f"(default: {DEFAULT_MAX_INPUT_LENGTH})" in run["--max_input_length"]
    bodies = bench_serve._bodies(PARSERS["bench serve"].parse_args(["--rate", "1"]))
    assert f"(default: {len(bodies)}, of a --dataset" in bench["--num_requests"]
    assert f"(default: {len(bodies[0]['prompt'])})" in bench["--input_len"]
    assert f"(default: {bodies[0]['max_tokens']})" in bench["--output_len"]
    plain = SamplingParams().resolve({})
    for name in ("top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"):
        assert f"(default: {getattr(plain, name):g})" in run[f"--{name}"]
    assert f"(default: {plain.temperature:g}, or 1 where sampling is asked for)" in run["--temperature"]


@pytest.mark.parametrize("command", ["run", "chat"])
def test_numbers_of_sampling_show_their_range(command: str) -> None:
    printed = shown(PARSERS[command])
    numbers = [field for field in FIELDS if "number" in field.kind and f"--{field.name}" in printed]
    assert {"temperature", "repetition_penalty", "top_p", "seed"} <= {field.name for field in numbers}
    for field in numbers:
        assert f"; {field.allowed} (default: " in printed[f"--{field.name}"]
    assert "[0, 10000]" in printed["--temperature"] and "[0.0001, 10000]" in printed["--repetition_penalty"]


@pytest.mark.parametrize("document", ["docs/launcher.md", "docs/launcher.zh.md"])
def test_documents_have_these_ranges(root: Path, document: str) -> None:
    rows = dict(re.findall(r"^\| `--(\w+)` (\|.*)$", (root / document).read_text(encoding="utf-8"), re.MULTILINE))
    for field in FIELDS:
        if field.kind == "number":
            assert {f"{field.low:g}", f"{field.high:g}"} <= set(re.findall(r"-?\d[\d.]*", rows[field.name])), field.name


def test_a_flag_is_worded_alike_in_every_command() -> None:
    wordings: dict[str, set[Any]] = {}
    for command in PARSERS:
        for action in PARSERS[command]._actions:
            for name in action.option_strings:
                wordings.setdefault(name, set()).add((action.help, str(action.default)))
    different = {name for name, one in wordings.items() if len(one) > 1 and name != "-h"}
    assert different == set(TWO_THINGS)


@pytest.mark.parametrize("language", ["en_US.UTF-8", "zh_CN.UTF-8"])
def test_modeltest_shows_its_defaults(root: Path, language: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each option that takes a value, and under the name by which it was started."""
    monkeypatch.setenv("LC_ALL", language)
    for words, name in ((["-m", "atb_models", "modeltest"], "atb-models modeltest"), (
        [str(root / "tests/modeltest/start.py")], "bash run.sh")):  # fmt: skip
        command = [sys.executable, *words, "--help"]
        out = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60).stdout
        assert f"{name} model_type test_mode" in out
        lines = [line for line in out.splitlines() if re.match(r" +--\w+ [A-Z]+ ", line)]
        assert len(lines) > 8 and all(re.search(r"\(default: .+\)|（默认：.+）", line) for line in lines), lines
