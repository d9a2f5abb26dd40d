"""docs/architecture.md is true: what it names exists, and every room of the code is in it, in both languages."""

from __future__ import annotations

import re

import pytest

from tests.documents.reading import ROOT, chinese, prose, tables

PAGE = "docs/architecture.md"
BOTH = [PAGE, chinese(PAGE)]
INDEX = ("task", "任务")  # the first cell of the table of tasks
ROOMS = ("room", "目录")


def below(document: str, heads: tuple[str, ...]) -> list[list[str]]:
    """The rows of the tables whose first cell is one of these, without their heads."""
    return [row for table in tables(document) if table[0][0] in heads for row in table[2:]]


def paths(text: str) -> list[str]:
    """What looks like a path in inline code: with a folder before the name, or ending in a slash."""
    return re.findall(r"`([\w.]+/[\w./]*)`", text)


@pytest.mark.parametrize("document", BOTH)
def test_every_path_exists(document: str) -> None:
    named = paths(prose(document))
    assert len(named) > 80
    assert [path for path in named if not (ROOT / path).exists()] == []
    assert [path for path in named if path.endswith("/") != (ROOT / path).is_dir()] == []


@pytest.mark.parametrize("document", BOTH)
def test_each_task_has_one_file(document: str) -> None:
    tasks = below(document, INDEX)
    assert len(tasks) >= 12
    for task, file, _ in tasks:
        (path,) = paths(file)
        assert (ROOT / path).is_file(), task
    assert len({row[0] for row in tasks}) == len(tasks)


def test_both_languages_name_the_same_files() -> None:
    english, other = ([row[1] for row in below(document, INDEX)] for document in BOTH)
    assert english == other
    assert paths(prose(BOTH[0])) == paths(prose(BOTH[1]))


@pytest.mark.parametrize("document", BOTH)
def test_every_package_is_a_room(document: str) -> None:
    packages = {f"{path.parent.relative_to(ROOT)}/" for path in ROOT.glob("atb_models/*/__init__.py")}
    assert len(packages) >= 14
    assert packages <= {paths(row[0])[0] for row in below(document, ROOMS)}
