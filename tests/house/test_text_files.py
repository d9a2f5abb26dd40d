"""Text files are read in one place, files.py: every other reader would have its own idea of marks and lines."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.house.source import modules

READERS = {"read_text", "read_bytes", "splitlines", "readlines", "DictReader", "TextIOWrapper"}
KERNEL = "a file of the kernel in /proc or /sys, which is ASCII and has \\n only"
EXCEPTIONS = {
    "atb_models.files": "the reader",
    "atb_models.machine.cgroup": KERNEL,
    "atb_models.machine.cores": KERNEL,
    "atb_models.machine.memory": KERNEL,
    "atb_models.ranks.lifetime": KERNEL,
    "atb_models.ops.native.build": "its own files; it runs where the package cannot be imported yet",
    "atb_models.ops.native.library": KERNEL + "; and its own libraries, as bytes",
    "modeltest.environment": KERNEL,
    "modeltest.speed.peak": KERNEL,
    "modeltest.accuracy.jail": KERNEL,
    "atb_models.launcher.torchrun": "a file in memory that its own ranks write, as ASCII",
    "atb_models.models.weights.opening": "a scheme of quantised weights gives a source of them, no text",
    "atb_models.quantizer.origin": "the same",
    "modeltest.accuracy.data": "csv.reader, of the lines that the reader gave",
    "modeltest.accuracy.journal": "its own file, as bytes: half a surrogate pair of a question must come back too",
}


def text_readers(source: str) -> list[str]:
    """The calls in a module's source that read text or part it into lines; opening to write or as bytes is none."""
    calls = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    return [ast.unparse(call) for call in calls if _reads_text(call)]


def _reads_text(call: ast.Call) -> bool:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    holder = ast.unparse(call.func.value) if isinstance(call.func, ast.Attribute) else ""
    if name != "open":
        return bool(holder) and (name in READERS or (holder, name) == ("csv", "reader"))
    if holder in ("os", "self"):
        return False
    modes = [*call.args[0 if holder and holder not in ("io", "codecs") else 1 :][:1]]
    modes += [word.value for word in call.keywords if word.arg == "mode"]
    mode = modes[0].value if modes and isinstance(modes[0], ast.Constant) else "r"
    return "b" not in str(mode) and ("+" in str(mode) or not set(str(mode)) & set("wax"))


def test_one_reader_of_text_files(root: Path) -> None:
    ours = {name: path for name, path in modules(root).items() if name.split(".")[0] in ("atb_models", "modeltest")}
    found = {name: text_readers(path.read_text(encoding="utf-8")) for name, path in ours.items()}
    assert {name: calls for name, calls in found.items() if calls and name not in EXCEPTIONS} == {}


def test_no_exception_is_left_over(root: Path) -> None:
    found = modules(root)
    idle = [name for name in EXCEPTIONS if not text_readers(found[name].read_text(encoding="utf-8"))]
    assert idle == []


@pytest.mark.parametrize(
    "call",
    ["path.read_text()", "text.splitlines()", "open(path)", "path.open()", "path.open('r', encoding='utf-8')",
     "open(path, mode='r+')", "io.open(path)", "csv.reader(lines)", "path.read_bytes()", "stream.readlines()"],
)  # fmt: skip
def test_a_reader_is_found(call: str) -> None:
    assert text_readers(f"def f():\n    return {call}") == [call]


@pytest.mark.parametrize(
    "call",
    ["read_text(path)", "open(path, 'rb')", "path.open('w', newline='')", "open(path, mode='a')", "os.open(path, 0)",
     "path.open('rb')", "self.open(path)"],
)  # fmt: skip
def test_what_reads_no_text_is_not_found(call: str) -> None:
    assert text_readers(f"def f():\n    return {call}") == []
