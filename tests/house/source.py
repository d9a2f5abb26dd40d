"""The project's source as text: its code files, its modules and what they import. Nothing is imported to learn this."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

CODE_FOLDERS = ("atb_models", "tests", "benchmarks", "tools", "examples")
CODE_SUFFIXES = (".py", ".c", ".cc", ".cpp", ".cxx", ".h", ".hpp", ".cu")
# a top-level package and the folder that it is found in; modeltest lies in a folder of another package
PACKAGES = (("atb_models", ""), ("modeltest", "tests"), ("tools", ""), ("tests", ""))


def code_files(root: Path) -> list[Path]:
    """Every Python, C and C++ file below the code folders, without hidden folders (virtual environments, caches)."""
    found = (path for folder in CODE_FOLDERS for path in (root / folder).rglob("*") if path.suffix in CODE_SUFFIXES)
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(root).parts))


def modules(root: Path) -> dict[str, Path]:
    """Dotted name -> file of every module of the packages."""
    found: dict[str, Path] = {}
    for package, folder in PACKAGES:
        for path in sorted((root / folder / package).rglob("*.py")):
            parts = path.relative_to(root / folder).with_suffix("").parts
            if parts[:2] != ("tests", "modeltest"):
                found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def public_classes(path: Path) -> list[str]:
    """The classes that a module defines at its top level, private ones left out."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    return [node.name for node in body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]


@cache
def imports(root: Path) -> dict[str, set[str]]:
    """Module -> the modules of the project that its file imports anywhere: in functions and under TYPE_CHECKING too.

    `import_module("a.b")` counts where the name is a literal. What its own packages import does not count.
    """
    known = modules(root)
    return {name: set(_imported(name, path, known)) - {name} for name, path in known.items()}


def _imported(name: str, path: Path, known: dict[str, Path]) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            wanted = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, name if path.name == "__init__.py" else name.rpartition(".")[0])
            wanted = [f"{base}.{alias.name}" if f"{base}.{alias.name}" in known else base for alias in node.names]
        elif isinstance(node, ast.Call) and _called(node) == "import_module" and isinstance(node.args[0], ast.Constant):
            wanted = [str(node.args[0].value)]
        else:
            continue
        yield from (module for module in wanted if module in known)


def _absolute(node: ast.ImportFrom, package: str) -> str:
    """The full name of the module that a `from ... import` in a module of `package` names."""
    if not node.level:
        return node.module or ""
    parts = package.split(".")
    return ".".join([*parts[: len(parts) - node.level + 1], *([node.module] if node.module else [])])


def _called(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that all reach each other by imports; a module of a circle stands in one group only."""
    reached = {module: _reachable(module, graph) for module in graph}
    found = {
        tuple(sorted(other for other in reached[module] if module in reached.get(other, ())))
        for module in graph
        if module in reached[module]
    }
    return [list(circle) for circle in sorted(found)]


def _reachable(start: str, graph: dict[str, set[str]]) -> set[str]:
    seen: set[str] = set()
    waiting = list(graph.get(start, ()))
    while waiting:
        module = waiting.pop()
        if module not in seen:
            seen.add(module)
            waiting.extend(graph.get(module, ()))
    return seen
