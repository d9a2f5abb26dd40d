"""The bracket lists, as users and shells write them."""

from __future__ import annotations

import pytest

from modeltest.command import lists


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1", (1,)), ("10", (10,)), ("20", (20,)), ("1,4", (1, 4)), ("[1,4]", (1, 4)), ("[1]", (1,)),
        (" [ 1 , 4 ] ", (1, 4)), ("1, 4", (1, 4)), ("007", (7,)),
        ("", None), ("[]", None), ("0", None), ("1,0", None), ("-1", None), ("1.5", None), ("1,", None), (",1", None),
        ("[1", None), ("1]", None), ("[[1]]", None), ("1 4", None), ("[1 4]", None), ("1,,4", None), ("٤", None),
        ("1e3", None), ("x", None), ("9" * 10, None),
    ],
)  # fmt: skip
def test_flat(text: str, values: tuple[int, ...] | None) -> None:
    assert lists.flat(text) == values


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("[[1,4],[1,8]]", ((1, 4), (1, 8))), ("[[1]]", ((1,),)), ("[[1,4], [1, 8]]", ((1, 4), (1, 8))),
        ("[ [1,4] ,[1] ]", ((1, 4), (1,))),
        ("[1,4]", None), ("1", None), ("[]", None), ("[[]]", None), ("[[1,4],[]]", None), ("[[1,4],8]", None),
        ("[[1,4][1,8]]", None), ("[[1,4],[0,8]]", None), ("[[1,4],[1,8]", None), ("[[[1]]]", None),
        ("[[1,4],[1,8]],", None), ("[[1,4]],[[1,8]]", None),
    ],
)  # fmt: skip
def test_nested(text: str, values: tuple[tuple[int, ...], ...] | None) -> None:
    assert lists.nested(text, lists.flat) == values


@pytest.mark.parametrize(
    ("text", "values"),
    [("[-1,8]", (-1, 8)), ("[ -1, 8 ]", (-1, 8)), ("-1,8", None), ("8", None), ("[]", None), ("[--1]", None)],
)
def test_signed(text: str, values: tuple[int, ...] | None) -> None:
    assert lists.signed(text) == values


@pytest.mark.parametrize("text", ["[[1,", "[1,4],", "[", "1,", "[[1,4]"])
def test_a_list_goes_on_in_the_next_word(text: str) -> None:
    assert lists.is_open(text)


@pytest.mark.parametrize("text", ["[1,4]", "1", "]", "/a,b", "a,", ""])
def test_a_list_that_has_ended(text: str) -> None:
    assert not lists.is_open(text)
