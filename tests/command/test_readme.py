"""The front page and the pages behind it say what the code does: commands, flags, variables, figures."""

from __future__ import annotations

import argparse
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from atb_models import env
from atb_models.cli import COMMANDS
from atb_models.command.parser import Parser
from atb_models.demo import questions
from atb_models.launcher.args import FIXED, REFUSED, build_parser
from atb_models.launcher.port import DEFAULT_PORT
from atb_models.models.dtypes import ALIASES
from atb_models.server.args import build_parser as service_parser
from tests.documents.reading import ROOT, chinese, rows, text_of


def both(*documents: str) -> list[str]:
    """The documents in both languages."""
    return [name for document in documents for name in (document, chinese(document))]


FRONT = both("README.md")
LAUNCHER = both("docs/launcher.md")
VARIABLES = both("docs/environment.md")
SPEED = both("docs/speed.md")
GUIDES = [str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("examples/models/*/README.md"))]
WITH_MATRIX = both("docs/models.md", *GUIDES)


@pytest.mark.parametrize("document", FRONT)
def test_the_front_page_is_short(document: str) -> None:
    assert len(text_of(document).splitlines()) <= 150


@pytest.mark.parametrize("document", FRONT)
def test_every_command_has_one_line(document: str) -> None:
    documented = [match[1] for row in rows(document) if (match := re.fullmatch(r"`atb-models (\w+)`", row[0]))]
    assert sorted(documented) == sorted(COMMANDS)


@pytest.mark.parametrize("document", LAUNCHER)
def test_every_flag_has_one_line(document: str) -> None:
    flags = [action.option_strings[0] for action in build_parser()._actions if action.option_strings]
    documented = [row[0].strip("`") for row in rows(document) if row[0].startswith("`--")]
    assert sorted(documented) == sorted(flag for flag in flags if flag != "-h")


@pytest.mark.parametrize("document", LAUNCHER)
def test_documented_defaults_are_the_parsers(document: str) -> None:
    parser = build_parser()
    for row in rows(document):
        default = parser.get_default(row[0].strip("`- "))
        if isinstance(default, (int, str)) and not isinstance(default, bool) and default != argparse.SUPPRESS:
            assert row[1] == str(default), row
    assert rows(document)


@pytest.mark.parametrize(
    ("document", "parser"),
    [*((name, build_parser) for name in LAUNCHER), *((name, service_parser) for name in both("docs/service.md"))],
)
def test_documented_values_are_the_parsers(document: str, parser: Callable[[], Parser]) -> None:
    """Of the flags with a list of values, all that there are and no other that such a flag might have."""
    choices = {a.option_strings[0]: list(a.choices) for a in parser()._actions if a.option_strings and a.choices}
    lines = {row[0].strip("`"): row for row in rows(document)}
    assert set(re.findall(r"\b(?:b?float(?:16|32)?|half)\b", lines["--dtype"][2])) == set(ALIASES)
    for flag in ("--dtype", "--device", "--format"):
        if flag == "--format" and flag not in choices:
            continue
        named = re.findall(r"\b(?:fp16|bf16|fp32|auto|npu|cuda|cpu|text|json|dot)\b", lines[flag][2])
        assert list(dict.fromkeys(named))[: len(choices[flag])] == choices[flag], flag
        assert set(named) <= set(choices[flag]), flag


@pytest.mark.parametrize("document", LAUNCHER)
def test_refused_flags_have_the_values_that_are_accepted(document: str) -> None:
    lines = {row[0].strip("`-"): row[2] for row in rows(document) if len(row) == 4}
    accepted = {name: [str(value) for value in values] for name, (values, _) in FIXED.items()}
    assert {name: re.findall(r"-?\d+", lines.get(name, "")) for name in [*FIXED, *REFUSED]} == {
        **accepted,
        **{name: [] for name in REFUSED},
    }


@pytest.mark.parametrize("document", VARIABLES)
def test_documented_variables_are_those_of_the_table(document: str) -> None:
    """All of them, but for those between processes of this program, which nobody should set."""
    named = set(re.findall(r"`([A-Za-z]\w+)`", text_of(document)))
    documented = {name for name in named if name in env.TABLE or re.fullmatch("[A-Z0-9]+(_[A-Z0-9]+)+", name)}
    ours = {name for name, variable in env.TABLE.items() if variable.meaning.startswith("internal")}
    assert documented == set(env.TABLE) - ours


@pytest.mark.parametrize("document", VARIABLES)
def test_documented_defaults_are_the_tables(document: str) -> None:
    defaults = {row[0].strip("`"): row[1] for row in rows(document) if len(row) == 3}
    known = {name: variable.default for name, variable in env.TABLE.items() if variable.default is not None}
    assert len(known) > 15
    assert {name: defaults[name] for name in known} == known


@pytest.mark.parametrize("document", SPEED)
def test_every_figure_is_a_number(document: str) -> None:
    """A placeholder such as STEP64 is none."""
    figures = [row[1] for row in rows(document) if len(row) == 3 and re.search("python|同上|the same", row[2])]
    assert len(figures) >= 5
    assert [figure for figure in figures if not re.search(r"\d", re.sub(r"[A-Za-z]\w*", "", figure))] == []


@pytest.mark.parametrize("document", SPEED)
def test_benchmarks_run_in_the_scripts_environment(document: str) -> None:
    commands = re.findall(r"([^\s`]*python) benchmarks/", text_of(document))
    assert commands and set(commands) == {".venv/bin/python"}


@pytest.mark.parametrize("document", FRONT)
def test_the_front_pages_figure_is_one_of_the_table(document: str) -> None:
    (share,) = re.findall(r"\d+ (?:to|到) \d+ %", text_of(document))
    assert share in text_of(document.replace("README", "docs/speed"))


@pytest.mark.parametrize("document", LAUNCHER)
def test_statuses_of_signals_are_named(document: str) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        assert str(128 + number) in text_of(document)


@pytest.mark.parametrize("document", WITH_MATRIX)
def test_ranks_on_cuda_are_those_on_a_cpu(document: str) -> None:
    """Both cells list the numbers of ranks, not a range."""
    models = [row for row in rows(document) if len(row) > 5 and "world size" in row[3]]
    assert models
    for row in models:
        assert re.findall(r"\d+", row[4]) == re.findall(r"\d+", re.sub(r"\(.*?\)", "", row[3])), row


@pytest.mark.parametrize("document", both("docs/models.md"))
def test_every_mark_of_the_matrix_links_its_test(document: str) -> None:
    matrix = [row for row in rows(document) if len(row) > 12 and "world size" in row[3]]
    assert len(matrix) == 13
    marks = [cell for row in matrix for cell in row[1:] if not cell.startswith("×") and row.index(cell) != 4]
    links = [re.fullmatch(r"\[(√|any world size|任意 world size)\]\(\.\./(tests/[\w/]+\.py)\)", mark) for mark in marks]
    assert all(links), marks


def test_pythons_are_the_same_everywhere(root: Path) -> None:
    """As pip, the scripts and the documents state them."""
    assert 'requires-python = ">=3.10,<3.13"' in (root / "pyproject.toml").read_text(encoding="utf-8")
    assert "Python 3.10 to 3.12 is needed" in (root / "examples/venv.sh").read_text(encoding="utf-8")
    assert "Python 3.10 to 3.12" in (root / "README.md").read_text(encoding="utf-8")


def test_default_port_is_the_documented_one() -> None:
    assert DEFAULT_PORT == 20030
    for document in [*VARIABLES, *LAUNCHER]:
        assert "20030" in text_of(document)


@pytest.mark.parametrize("document", FRONT)
def test_quoted_answer_is_the_checkpoints(document: str) -> None:
    known = {str(one["question"]): str(one["answer"]).strip() for one in questions()}
    quoted = re.findall(r"^Answer\[0\]: (.*)$", text_of(document), re.MULTILINE)
    assert quoted == [known["Who is the CEO of Google?"]]


@pytest.mark.parametrize("document", FRONT)
def test_the_number_of_questions_is_the_checkpoints(document: str) -> None:
    assert re.findall(r"\[(\d+) (?:questions|个问题)\]", text_of(document)) == [str(len(list(questions())))]
