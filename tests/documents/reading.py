"""The project's Markdown files, and their parts."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FENCE = re.compile(r"^(?P<mark>```+)(?P<kind>\w*)\n(?P<code>.*?)^(?P=mark)$", re.MULTILINE | re.DOTALL)


def all_documents() -> list[str]:
    """Every Markdown file, as a path from the root; none of virtual environments, builds and results."""
    skipped = {"build", "dist", "outputs", "data"}
    paths = (path.relative_to(ROOT) for path in ROOT.rglob("*.md"))
    return sorted(str(p) for p in paths if not any(part.startswith(".") or part in skipped for part in p.parts))


def chinese(document: str) -> str:
    """The name of a document's Chinese form."""
    return document.removesuffix(".md") + ".zh.md"


@cache
def text_of(document: str) -> str:
    return (ROOT / document).read_text("utf-8")


def fences(document: str) -> list[tuple[str, str]]:
    """Language and content of each block of code."""
    return [(match["kind"], match["code"]) for match in FENCE.finditer(text_of(document))]


def prose(document: str) -> str:
    """The text without blocks of code."""
    return FENCE.sub("", text_of(document))


def tables(document: str) -> list[list[list[str]]]:
    """The cells of each table, row by row; the second row is the rule below the head."""
    blocks = re.findall(r"(?:^\|.*\n)+", prose(document) + "\n", re.MULTILINE)
    return [[[cell.strip() for cell in row.strip("|").split("|")] for row in block.splitlines()] for block in blocks]


def rows(document: str) -> list[list[str]]:
    """The rows of all tables."""
    return [row for table in tables(document) for row in table]


def headings(document: str) -> list[str]:
    """The headings, with the marks of their level."""
    return re.findall(r"^#+ .*$", prose(document), re.MULTILINE)


def anchors(document: str) -> set[str]:
    """The headings as links name them: GitHub lowers the case, drops punctuation and joins words with hyphens."""
    words = (re.sub(r"[^\w\- ]", "", heading.lstrip("# ").lower()) for heading in headings(document))
    return {word.replace(" ", "-") for word in words}
