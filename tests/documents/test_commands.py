"""The commands that documents print have flags that exist, with values that they take."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from atb_models.clients import batch, bench_serve, chat
from atb_models.launcher.args import parse_args as parse_launcher
from atb_models.quantizer import main as quantize
from atb_models.server.args import parse_args as parse_serve
from tests.documents.reading import ROOT, all_documents, fences, prose

PARSERS: dict[str, Callable[[list[str]], Any]] = {
    "run": parse_launcher,
    "launch": parse_launcher,
    "plan": parse_launcher,
    "graph": lambda words: parse_launcher(["--print_graph", *words]),
    "serve": parse_serve,
    "chat": lambda words: chat.build_parser().parse_args(words),
    "bench serve": bench_serve.parse_args,
    "batch": lambda words: batch.build_parser().parse_args(words),
    "quantize": lambda words: quantize.build_parser().parse_args(words),
}
COMMAND = f"(?:atb-models|-m atb_models) (?P<name>{'|'.join(PARSERS)})"
LAUNCHER = r"run_pa\.py|examples/models/\w+/run_pa_\w+\.sh"
START = re.compile(rf"(?:{COMMAND}|{LAUNCHER})(?=\s|$)(?P<words>.*)")


def commands(document: str) -> Iterator[tuple[str, list[str]]]:
    """Name and arguments of the commands in a document's blocks of shell and in its inline code."""
    blocks = [code.replace("\\\n", " ") for kind, code in fences(document) if kind == "shell"]
    lines = [(line, True) for line in "\n".join(blocks).splitlines()]
    lines += [(code, False) for code in re.findall(r"`([^`\n]+)`", prose(document))]
    for line, is_whole in lines:
        if match := START.search(line):
            words = shlex.split(re.sub(r" (?:\||>|2>|&&|\|\|) .*", "", match["words"]), comments=True)
            if is_whole or words:  # in a sentence the name alone stands for the command
                yield match["name"] or "run", words


def test_commands_are_found() -> None:
    found = list(commands("README.md"))
    assert ("plan", ["--tp", "2"]) in found and ("serve", []) in found
    assert ("run", ["${weight_path}", "-trust_remote_code"]) in found
    assert {name for document in all_documents() for name, _ in commands(document)} == set(PARSERS)


@pytest.mark.parametrize("document", [name for name in all_documents() if "deploy" in name or "service." in name])
def test_pages_of_the_service_start_it(document: str) -> None:
    assert "serve" in {name for name, _ in commands(document)}


@pytest.mark.parametrize("document", all_documents())
def test_commands_have_flags_that_exist(document: str) -> None:
    for name, words in commands(document):
        PARSERS[name](words)


@pytest.mark.parametrize("document", all_documents())
def test_extras_exist(document: str) -> None:
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    extras = project.split("[project.optional-dependencies]")[1].split("\n[")[0]
    known = re.findall(r"^(\w+) = \[", extras, re.MULTILINE)
    text = prose(document) + "".join(code for _, code in fences(document))
    for editable, names in re.findall(r"pip install (-e )?'\.\[([\w,]+)\]'", text):
        assert set(names.split(",")) <= set(known), names
        assert editable, "without -e a copy would replace what quickstart.sh has installed"
