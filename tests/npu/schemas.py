"""The schemas of torch_npu's operators that the backend calls, recorded in schemas.txt with the version they are of.

Record them anew from the installed torch_npu: python -m tests.npu.soft python -m tests.npu.schemas
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

RECORDED = Path(__file__).with_name("schemas.txt")
OPS = Path(__file__).parents[2] / "atb_models" / "ops"
BACKEND = (OPS / "npu.py", OPS / "quantized" / "npu.py", OPS / "quantized" / "npu_cache.py")


@dataclass(frozen=True)
class Schema:
    """An operator's parameters: those that may be given by place, and all of them; which have no default."""

    by_place: tuple[str, ...]
    names: tuple[str, ...]
    required: frozenset[str]

    @classmethod
    def parse(cls, text: str) -> Schema:
        """Of torch's text, as npu::name(Tensor x, int k=1, *, Tensor? bias=None) -> Tensor."""
        words = text[text.index("(") + 1 : text.rindex(") ->")].split(", ")
        star = words.index("*") if "*" in words else len(words)
        names = [word.partition("=")[0].split()[-1] for word in words]
        required = {name for name, word in zip(names, words, strict=True) if "=" not in word and name != "*"}
        return cls(tuple(names[:star]), tuple(name for name in names if name != "*"), frozenset(required))

    def problem(self, places: int, keywords: list[str]) -> str:
        """What is wrong with a call of so many arguments by place and these by name; "" where nothing is."""
        given = [*self.by_place[:places], *keywords]
        unknown = sorted(set(keywords) - set(self.names))
        if places > len(self.by_place):
            return f"{places} arguments by place, {len(self.by_place)} are taken"
        if unknown:
            return f"no parameter {', '.join(unknown)}"
        if len(set(given)) < len(given):
            return "an argument twice"
        absent = sorted(self.required - set(given))
        return f"{', '.join(absent)} missing" if absent else ""


def recorded() -> tuple[str, dict[str, str]]:
    """The version, and each operator's schema as text by its name in Python."""
    version, *lines = RECORDED.read_text().splitlines()
    return version.removeprefix("torch_npu "), {line[len("npu::") : line.index("(")]: line for line in lines}


def calls(source: str) -> list[tuple[str, int, list[str]]]:
    """Each call of a torch_npu function: its name, arguments by place, and the names of the others."""
    found = []
    for node in ast.walk(ast.parse(source)):
        function = node.func if isinstance(node, ast.Call) else None
        if not isinstance(node, ast.Call) or not isinstance(function, ast.Attribute):
            continue
        if isinstance(function.value, ast.Name) and function.value.id == "torch_npu":
            found.append((function.attr, len(node.args), [word.arg or "**" for word in node.keywords]))
    return found


def backend_calls() -> list[tuple[str, int, list[str]]]:
    """Those of the backend."""
    return [call for path in BACKEND for call in calls(path.read_text())]


def installed(name: str) -> str:
    """The text of the installed torch_npu."""
    import torch
    import torch_npu  # noqa: F401

    return str(getattr(torch.ops.npu, name).default._schema)


def record() -> None:
    """Write schemas.txt."""
    from importlib.metadata import version

    names = sorted({name for name, _, _ in backend_calls()})
    RECORDED.write_text("\n".join([f"torch_npu {version('torch_npu')}", *map(installed, names), ""]))


if __name__ == "__main__":
    record()
