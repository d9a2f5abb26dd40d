"""docs/ascend.md says what the program says, in both languages."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from atb_models import env
from atb_models.machine import npu
from atb_models.machine.determinism import NEEDED

# Every error of these is in the documents, which name messages of the other files too.
SOURCES = (
    "machine/npu.py",
    "machine/device.py",
    "machine/determinism.py",
    "engine/graph_capture.py",
    "ops/npu.py",
    "ops/quantized/npu_packing.py",
)
OTHERS = ("ranks/shared_memory.py",)
DOCUMENTS = ("docs/ascend.md", "docs/ascend.zh.md")


def documented(path: Path) -> list[list[str]]:
    """The parts of each message in the first column of the document's table of errors."""
    cells = [line.split("|")[1] for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    return [re.findall("`([^`]+)`", cell) for cell in cells if not re.search("`[A-Z_]+`|atb-models|set_env|--", cell)]


def template(node: ast.expr, constants: dict[str, str]) -> str:
    """The text of a message, {} for what it shows."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.Name):
        return constants.get(node.id, "{}")
    if isinstance(node, ast.JoinedStr):
        return "".join(template(part, constants) for part in node.values)
    return template(node.value, constants) if isinstance(node, ast.FormattedValue) else "{}"


def messages(path: Path) -> Iterator[str]:
    """What each ConfigError of a module says; where that is a function's answer, each of its answers."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    constants = {
        statement.targets[0].id: statement.value.value
        for statement in tree.body
        if isinstance(statement, ast.Assign)
        and isinstance(statement.targets[0], ast.Name)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "ConfigError":
            yield template(node.args[0], constants)
        elif isinstance(node, ast.FunctionDef) and node.name == "import_problem":
            answers = [one.value for one in ast.walk(node) if isinstance(one, ast.Return) and one.value is not None]
            yield from (template(answer, constants) for answer in answers)


@pytest.mark.parametrize("document", DOCUMENTS)
@pytest.mark.parametrize("source", SOURCES)
def test_every_message_has_a_row(root: Path, source: str, document: str) -> None:
    rows = documented(root / document)
    said = [message for message in messages(root / "atb_models" / source) if message != "device npu: {}"]
    assert said
    ours = [message for message in said if not message.startswith("device cuda")]
    assert [message for message in ours if not any(all(part in message for part in row) for row in rows)] == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_row_is_a_message_of_the_program(root: Path, document: str) -> None:
    text = (root / document).read_text(encoding="utf-8")
    source = "".join((root / "atb_models" / name).read_text() for name in (*SOURCES, *OTHERS))
    source = re.sub(r'"\s*\n\s*f?"', "", source)  # a message over several lines
    parts = [part for row in documented(root / document) for part in row]
    assert len(parts) >= 16
    assert [part for part in parts if part not in source] == []
    assert set(re.findall(r"`([A-Z]+(?:_[A-Z]+)+)`", text)) <= set(env.TABLE)
    assert all(name in text for name in [*npu.DEFAULTS, *NEEDED["npu"], *NEEDED["cuda"]])
    assert npu.SET_ENV in text


def test_both_languages_have_the_same_parts(root: Path) -> None:
    english, chinese = ((root / name).read_text(encoding="utf-8") for name in DOCUMENTS)
    for pattern in (r"^#+ ", r"^\| ", r"^ {4,}\S", r"^\d\. ", r"`[^`]+`"):
        assert len(re.findall(pattern, english, re.M)) == len(re.findall(pattern, chinese, re.M)), pattern
    assert documented(root / DOCUMENTS[0]) == documented(root / DOCUMENTS[1])
