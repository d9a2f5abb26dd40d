"""How large values and the results of operations are, told before they are made.

A template is code of strangers, and a wrong number in it is one step from a text of any size: 'a' * 10**10, 10**10**10.
"""

from __future__ import annotations

import re
from collections.abc import ItemsView, Iterable, Iterator, KeysView, Mapping, ValuesView
from itertools import chain
from typing import Any, Final

from jinja2.sandbox import SecurityError
from jinja2.utils import Namespace

MOST_LENGTH: Final = 1 << 23  # characters of a text, items of a list
MOST_BITS: Final = 1 << 14  # of a whole number that is computed
BRACKETS: Final = 2  # characters around a collection
MOST_DIGITS: Final = 4000  # Python reads no longer number
MANY: Final = (str, bytes, list, tuple)
# What follows % and the name in parentheses: flags, width, precision, length and type.
DIRECTIVE: Final = re.compile(r"[-+ #0]*(\*|[0-9]*)(?:\.(\*|[0-9]*))?[hlL]?(.?)", re.DOTALL)


def check_length(length: float, what: str) -> None:
    """Raises SecurityError for more characters or items than MOST_LENGTH."""
    if length > MOST_LENGTH:
        raise SecurityError(f"the result of {what} is too large: more than {MOST_LENGTH} characters or items")


def as_text(value: Any, what: str) -> str:
    """The value as text. Raises SecurityError for a collection whose text would be too large."""
    check_length(text_size(value), what)
    return value if isinstance(value, str) else str(value)


def text_size(value: Any, per_item: int = 2, indent: int = 0) -> int:
    """About how many characters the value's text has, without escapes; any number above MOST_LENGTH where it has more.

    per_item: characters between two items of a collection. indent: those before an item for each level of nesting.
    """
    if isinstance(value, (str, bytes)):
        return len(value)
    size = 0
    open_collections: list[Iterator[Any]] = [iter((value,))]
    while open_collections:
        before = per_item + indent * (len(open_collections) - 1)
        for item in open_collections[-1]:
            size += before
            if size > MOST_LENGTH:
                return size
            if isinstance(item, (str, bytes)):
                size += len(item)
            elif isinstance(item, int):
                size += item.bit_length() // 3
            elif (items := _items(item)) is not None:
                size += BRACKETS
                open_collections.append(iter(items))
                break
        else:
            open_collections.pop()
    return size


def _items(value: Any) -> Iterable[Any] | None:
    """What the text of a collection shows; None for what is no collection."""
    if isinstance(value, Mapping):
        return chain.from_iterable(value.items())
    if isinstance(value, Namespace):
        return (value._Namespace__attrs,)  # Jinja's own name of its attributes
    if isinstance(value, (list, tuple, set, frozenset, KeysView, ValuesView, ItemsView)):
        return value
    return None


def check_operation(operator: str, left: Any, right: Any) -> None:
    """Raises SecurityError where the result of `left operator right` would be too large."""
    what = f"an operation {operator}"
    if operator == "%" and isinstance(left, (str, bytes)):
        check_length(percent_size(left, right), what)
    elif operator == "+" and isinstance(left, MANY) and isinstance(right, MANY):
        check_length(len(left) + len(right), what)
    elif isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length()
        if (bits * max(right, 0) if operator == "**" else max(bits, right.bit_length())) > MOST_BITS:
            raise SecurityError(f"the result of {what} is too large: a number of more than {MOST_BITS} bits")
    elif operator == "*":
        for many, times in ((left, right), (right, left)):
            if isinstance(many, MANY) and isinstance(times, int):
                check_length(len(many) * times, what)


def percent_size(form: str | bytes, values: Any) -> int:
    """The most characters that `form % values` may have, without escapes.

    A directive that Python refuses ends the count, for nothing after it is computed.
    """
    text = form.decode("latin-1") if isinstance(form, bytes) else form
    given = iter(values if isinstance(values, tuple) else (values,))
    size, place = len(text), text.find("%")
    while place >= 0 and size <= MOST_LENGTH:
        name, place = _name_in_parentheses(text, place + 1)
        match = DIRECTIVE.match(text, place) if place >= 0 else None
        if match is None:
            break
        size += sum(_width(digits, given) for digits in (match[1], match[2]) if digits)
        if match[3] != "%":
            key = name.encode("latin-1") if name is not None and isinstance(form, bytes) else name
            if key is not None and (not isinstance(values, Mapping) or key not in values):
                break
            size += text_size(next(given, "") if key is None else values[key])
        place = text.find("%", match.end())
    return size


def _width(digits: str, given: Iterator[Any]) -> int:
    """The number of a width or precision, which for * is the next value."""
    if digits != "*":
        return whole_number(digits)
    value = next(given, 0)
    return abs(value) if isinstance(value, int) else 0


def whole_number(digits: str) -> int:
    """The number that is written; MOST_LENGTH + 1 for more digits than Python reads."""
    return int(digits) if len(digits) <= MOST_DIGITS else MOST_LENGTH + 1


def _name_in_parentheses(text: str, start: int) -> tuple[str | None, int]:
    """The name between parentheses at `start`, if there is one, and the place behind it: -1 where it does not end."""
    if not text.startswith("(", start):
        return None, start
    depth = 0
    for place in range(start, len(text)):
        depth += (text[place] == "(") - (text[place] == ")")
        if depth == 0:
            return text[start + 1 : place], place + 1
    return None, -1
