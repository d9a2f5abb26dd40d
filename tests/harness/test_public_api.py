"""What modeltest may touch of atb_models: what any user's program may."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import atb_models

PACKAGE = Path(__file__).resolve().parents[1] / "modeltest"
FILES = sorted(PACKAGE.rglob("*.py"))
# Modules that hold no part of the engine. Of what command lines share only the value types and what is said of
# variables.
MODULES = {
    "atb_models." + name
    for name in (
        "bounds", "command.set_variables", "command.values", "env", "errors", "fetch", "files", "json_file", "limits",
        "log", "wording",
    )
}  # fmt: skip
NAMES = {*atb_models.__all__, "env", "log"}
# How a program ends, and which model types there are.
SINGLE = {("atb_models.command.exit_status", "run_guarded"), ("atb_models.models.families", "FAMILIES")}


def imports(tree: ast.AST) -> Iterator[tuple[str, str | None]]:
    """Module and name of each import; no name where the module itself is imported."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "a relative import"
            yield from ((node.module or "", alias.name) for alias in node.names)


def is_public(module: str, name: str | None) -> bool:
    if module.split(".")[0] != "atb_models":
        return True
    if module == "atb_models":
        return name is None or name in NAMES
    return (module, name) in SINGLE or (module in MODULES and not str(name).startswith("_"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_public_names_only(file: Path) -> None:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    assert [found for found in imports(tree) if not is_public(*found)] == []
    attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    private = [node for node in attributes if node.attr.startswith("_") and not node.attr.endswith("__")]
    assert [ast.unparse(node) for node in private if ast.unparse(node.value) not in ("self", "cls", "os")] == []


@pytest.mark.parametrize(
    "line",
    ["import atb_models.engine.llm", "from atb_models.engine import llm", "from atb_models import engine",
     "from atb_models.command.exit_status import report", "from atb_models.errors import _hidden"],
)  # fmt: skip
def test_the_test_sees_what_is_not_public(line: str) -> None:
    assert not all(is_public(*found) for found in imports(ast.parse(line)))


def test_no_module_stands_for_one_of_python() -> None:
    """`python -m modeltest` in its own folder looks for modules there first."""
    assert {file.stem for file in PACKAGE.iterdir()} & sys.stdlib_module_names == set()
