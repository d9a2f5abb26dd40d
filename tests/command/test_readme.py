"""The documents say what the code does: flags, variables, commands."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest

from atb_models import env
from atb_models.demo import questions
from atb_models.launcher.args import build_parser
from atb_models.launcher.port import DEFAULT_PORT

MODELS = [f"examples/models/{family}/README.md" for family in ("deepseek", "qwen", "xverse")]
DOCUMENTS = ["README.md", "examples/README.md", *MODELS]
WITH_MATRIX = ["README.md", *MODELS]
LANGUAGES = ["README.md", "README.zh.md"]


def rows(path: Path) -> list[list[str]]:
    """The cells of all table rows of a document."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]


@pytest.mark.parametrize("document", LANGUAGES)
def test_every_flag_has_one_line(root, document):
    flags = [action.option_strings[0] for action in build_parser()._actions if action.option_strings]
    documented = [row[0].strip("`") for row in rows(root / document) if row[0].startswith("`--")]
    assert sorted(documented) == sorted(flag for flag in flags if flag != "-h")


@pytest.mark.parametrize("document", LANGUAGES)
def test_documented_defaults_are_the_parsers(root, document):
    parser = build_parser()
    for row in rows(root / document):
        default = parser.get_default(row[0].strip("`- "))
        if isinstance(default, (int, str)) and not isinstance(default, bool):
            assert row[1] == str(default), row
    assert rows(root / document)


@pytest.mark.parametrize("document", [d.replace(".md", suffix) for d in DOCUMENTS[1:2] for suffix in (".md", ".zh.md")])
def test_documented_variables_are_in_the_table(root, document):
    documented = re.findall(r"`([A-Z][A-Z0-9]*_[A-Z0-9_]+)", (root / document).read_text(encoding="utf-8"))
    assert len(documented) > 20
    # made and read by the shell scripts only
    assert set(documented) - set(env.TABLE) == set()


@pytest.mark.parametrize("document", DOCUMENTS)
def test_both_languages_have_the_same_parts(root, document):
    english, chinese = ((root / name).read_text("utf-8") for name in (document, document.replace(".md", ".zh.md")))
    for pattern in (r"^#+ ", r"^\|", r"^```", r"^    \$?bash"):
        counts = [len(re.findall(pattern, text, re.MULTILINE)) for text in (english, chinese)]
        assert counts[0] == counts[1], pattern
    assert len(re.findall(r"[\u4e00-\u9fff]", chinese)) > 200


@pytest.mark.parametrize("document", [d.replace(".md", suffix) for d in DOCUMENTS for suffix in (".md", ".zh.md")])
def test_links_lead_somewhere(root, document):
    path = root / document
    links = re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8"))
    assert links
    assert [link for link in links if "//" not in link and not (path.parent / link).exists()] == []


@pytest.mark.parametrize("document", [d.replace(".md", suffix) for d in DOCUMENTS for suffix in (".md", ".zh.md")])
def test_named_files_exist(root, document):
    text = (root / document).read_text(encoding="utf-8")
    named = re.findall(r"(?:bash|python) ([\w./]+\.(?:sh|py))", text)
    assert [name for name in named if not (root / name).exists()] == []


@pytest.mark.parametrize("document", LANGUAGES)
def test_every_figure_is_a_number(root, document):
    """A placeholder such as STEP64 is none."""
    figures = [row[1] for row in rows(root / document) if len(row) == 3 and re.search("python|同上|the same", row[2])]
    assert len(figures) >= 5
    assert [figure for figure in figures if not re.search(r"\d", re.sub(r"[A-Za-z]\w*", "", figure))] == []


@pytest.mark.parametrize("document", LANGUAGES)
def test_benchmarks_run_in_the_scripts_environment(root, document):
    commands = re.findall(r"`([^`]*python) benchmarks/", (root / document).read_text(encoding="utf-8"))
    assert commands and set(commands) == {".venv/bin/python"}


@pytest.mark.parametrize("document", LANGUAGES)
def test_statuses_of_signals_are_named(root, document):
    text = (root / document).read_text(encoding="utf-8")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        assert str(128 + number) in text


@pytest.mark.parametrize("document", [d.replace(".md", suffix) for d in WITH_MATRIX for suffix in (".md", ".zh.md")])
def test_ranks_on_cuda_are_those_on_a_cpu(root, document):
    """Both cells list the numbers of ranks, not a range."""
    models = [row for row in rows(root / document) if len(row) > 5 and "world size" in row[3]]
    assert models
    for row in models:
        assert re.findall(r"\d+", row[4]) == re.findall(r"\d+", row[3]), row


@pytest.mark.parametrize("document", LANGUAGES)
def test_every_mark_of_the_matrix_links_its_test(root, document):
    matrix = [row for row in rows(root / document) if len(row) > 12 and "world size" in row[3]]
    assert len(matrix) == 5
    marks = [cell for row in matrix for cell in row[1:] if not cell.startswith("×") and row.index(cell) != 4]
    links = [re.fullmatch(r"\[(√|world size [\d, 、]+)\]\((tests/[\w/]+\.py)\)", mark) for mark in marks]
    assert all(links), marks


def test_pythons_are_the_same_everywhere(root):
    """As pip, the scripts and the documents state them."""
    assert 'requires-python = ">=3.10,<3.13"' in (root / "pyproject.toml").read_text(encoding="utf-8")
    assert "Python 3.10 to 3.12 is needed" in (root / "examples/venv.sh").read_text(encoding="utf-8")
    assert "Python 3.10 to 3.12" in (root / "README.md").read_text(encoding="utf-8")


def test_default_port_is_the_documented_one(root):
    assert DEFAULT_PORT == 20030
    for name in ("examples/README.md", "examples/README.zh.md"):
        assert "20030" in (root / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("document", LANGUAGES)
def test_quoted_answer_is_the_checkpoints(root, document):
    known = {str(one["question"]): str(one["answer"]).strip() for one in questions()}
    quoted = re.findall(r"^Answer\[0\]: (.*)$", (root / document).read_text(encoding="utf-8"), re.MULTILINE)
    assert quoted == [known["Who is the CEO of Google?"]]
