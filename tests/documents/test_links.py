"""Every link of every document leads somewhere, to the part of the page that it names, in the reader's language."""

from __future__ import annotations

import os.path
import re

import pytest

from tests.documents.reading import ROOT, all_documents, anchors, chinese, prose, text_of

LINK = re.compile(r"\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)\)")


def links(document: str) -> list[tuple[str, str, str]]:
    """Text, file (as a path from the root) and anchor of each link within the project."""
    found = []
    for match in LINK.finditer(re.sub(r"`[^`\n]*`", "code", prose(document))):
        path, _, anchor = match["target"].partition("#")
        if "//" not in path:
            target = os.path.normpath(os.path.join(os.path.dirname(document), path)) if path else document
            found.append((match["text"], target, anchor))
    return found


def test_there_are_documents_with_links() -> None:
    assert {"README.md", "README.zh.md", "docs/service.md", "tests/modeltest/README.zh.md"} <= set(all_documents())
    assert ("中文", "docs/architecture.zh.md", "") in links("docs/architecture.md")


@pytest.mark.parametrize("document", all_documents())
def test_links_lead_somewhere(document: str) -> None:
    wrong = []
    for text, target, anchor in links(document):
        known = (ROOT / target).exists() and (not anchor or anchor in anchors(target))
        if not known:
            wrong.append((text, target, anchor))
    assert wrong == []


@pytest.mark.parametrize("document", [name for name in all_documents() if name.endswith(".zh.md")])
def test_chinese_pages_link_chinese_pages(document: str) -> None:
    """But for the link to the same page in English."""
    english = document.replace(".zh.md", ".md")
    targets = {target for _, target, _ in links(document)} - {english}
    assert [target for target in targets if target.endswith(".md") and (ROOT / chinese(target)).exists()] == []


@pytest.mark.parametrize("document", [name for name in all_documents() if (ROOT / chinese(name)).exists()])
def test_each_language_links_the_other(document: str) -> None:
    for name, other in ((document, chinese(document)), (chinese(document), document)):
        assert other in {target for _, target, _ in links(name)}, name


@pytest.mark.parametrize("document", all_documents())
def test_named_scripts_exist(document: str) -> None:
    named = re.findall(r"(?:bash|python) ([\w./]+/[\w.]+\.(?:sh|py))", text_of(document))
    assert [name for name in named if not (ROOT / name).exists()] == []
