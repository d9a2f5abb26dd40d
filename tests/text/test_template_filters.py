"""Filters and methods of texts give what they give in Jinja's own sandbox: the same text, or the same error."""

from __future__ import annotations

import random
import re
from itertools import product
from typing import Any

import pytest
from jinja2 import Environment
from jinja2.sandbox import ImmutableSandboxedEnvironment

from atb_models.text.chat.environment import make_environment

VALUES = (
    "'aB c<d> 1'", "('<a>' | safe)", "'a\nb\n\nc'", "some_bytes", "['b', 'a', 'c']", "[[1], [2]]",
    "{'k': 1, 'b': ['x']}", "none", "2.5", "1700000000", "nothing", "messages",
)  # fmt: skip
ARGUMENTS = (
    "()", "(1)", "(70000)", "('a')", "(2, 'x')", "('a', 'b', 99999999999)", "(attribute='role')", "(width=3)",
    "(context=1)",
)  # fmt: skip
# Ours leaves <, > and & as they are; and our own function has a name of its own in the errors of wrong arguments.
OURS = {"tojson", "pprint"}
ITERATOR = "<iterator>"
METHODS = [name for name in dir(str) if not name.startswith("_")] + ["hex", "decode", "to_bytes", "bit_length"]


@pytest.fixture(scope="module")
def both() -> tuple[Environment, Environment]:
    return make_environment(), ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)


def compare(both: tuple[Environment, Environment], source: str) -> str:
    ours, theirs = (outcome(environment, source) for environment in both)
    assert ours == theirs, source
    return ours


def outcome(environment: Environment, source: str) -> str:
    """The text, or the kind and words of the error."""
    random.seed(3)  # of the filter `random`
    variables: dict[str, Any] = {"messages": [{"role": "u", "content": "c"}], "some_bytes": b"xy"}
    try:
        text = environment.from_string(source).render(variables)
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
    # an iterator is shown by its address, and ours that count have another name
    return re.sub(r"<[\w.]+ object[^>]*>|<generator object [^>]*>", ITERATOR, text)


@pytest.mark.parametrize("name", sorted(ImmutableSandboxedEnvironment().filters.keys() - OURS))
def test_a_filter_gives_what_jinjas_gives(both: tuple[Environment, Environment], name: str) -> None:
    for value, arguments in product(VALUES, ARGUMENTS):
        shown = compare(both, f"{{{{ {value} | {name}{arguments} }}}}")
        if ITERATOR in shown:
            compare(both, f"{{{{ {value} | {name}{arguments} | list }}}}")


@pytest.mark.parametrize("name", METHODS)
def test_a_method_gives_what_pythons_gives(both: tuple[Environment, Environment], name: str) -> None:
    for value, arguments in product(VALUES, ARGUMENTS):
        compare(both, f"{{{{ ({value}).{name}{arguments} }}}}")
