"""What a chat template may compute: no text or number that takes gigabytes or minutes to make.

A template is code of strangers, and a wrong number in it is one step from a text of any size: 'a' * 10**10, 10**10**10.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

from jinja2.filters import do_format
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError

MOST_LENGTH = 1 << 24  # characters of a text or items of a list, and any number that a function is given
MOST_BITS = 1 << 14  # of a whole number that is computed
# In '%5.2f' and in '{:5.2f}'; of longer numbers the first digits are enough.
WIDTHS = re.compile(r"%(?:\(.*?\))?[-+ #0]*(\d{0,20})\d*(?:\.(\d{0,20}))?")
WIDTH_IN_BRACES = re.compile(r"(?<=[^\d])(\d{1,20})(?=[^{}]*\})")
MANY = (str, list, tuple)
SIZED_FILTERS = ("batch", "center", "indent", "slice", "truncate", "wordwrap")


class BoundedSandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, in which sums, products, powers, formats and the numbers that functions are given have a bound.

    What goes through `call_binop` is not computed while the template is compiled either.
    """

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.filters.update({name: _bounded(self.filters[name]) for name in SIZED_FILTERS})
        self.filters["format"] = _format

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """The result of an operation. Raises SecurityError for one that would be too large."""
        _check_size(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def call(self, context: Context, function: Any, /, *args: Any, **options: Any) -> Any:
        """The result of a call. Raises SecurityError for a number, or a width, that asks for too much."""
        _check_numbers((*args, *options.values()))
        method = getattr(function, "__wrapped__", function)  # as Jinja's sandbox wraps str.format
        text = getattr(method, "__self__", None)
        if isinstance(text, str) and method.__name__ in ("format", "format_map"):
            _check_numbers([int(digits) for digits in WIDTH_IN_BRACES.findall(text)])
        return super().call(context, function, *args, **options)


def _check_size(operator: str, left: Any, right: Any) -> None:
    if _size(operator, left, right) > 1:
        raise SecurityError(f"the result of an operation {operator} is too large")


def _format(value: str, *args: Any, **options: Any) -> str:
    """Jinja's own filter. Raises SecurityError for a width that asks for too much."""
    _check_size("%", value, (*args, *options.values()))
    return do_format(value, *args, **options)


def _size(operator: str, left: Any, right: Any) -> float:
    """What an operation's result takes, as a share of what it may."""
    if operator == "%" and isinstance(left, str):
        return _widest(left, right) / MOST_LENGTH
    if operator == "+" and isinstance(left, MANY) and isinstance(right, MANY):
        return (len(left) + len(right)) / MOST_LENGTH
    if isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length()
        return (bits * max(right, 0) if operator == "**" else max(bits, right.bit_length())) / MOST_BITS
    for many, times in ((left, right), (right, left)):
        if operator == "*" and isinstance(many, MANY) and isinstance(times, int):
            return len(many) * times / MOST_LENGTH
    return 0


def _widest(form: str, values: Any) -> int:
    """The largest of a format's widths and precisions, and of the values that may be some: those of `*`."""
    given = values if isinstance(values, tuple) else (values,)
    wide = [value for value in given if isinstance(value, int)] if "*" in form else []
    return max([0, *wide, *(int(digits) for pair in WIDTHS.findall(form) for digits in pair if digits)])


def _bounded(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that refuses numbers that ask for too much."""

    @wraps(function)
    def checked(*args: Any, **options: Any) -> Any:
        _check_numbers((*args, *options.values()))
        return function(*args, **options)

    return checked


def _check_numbers(values: Sequence[Any]) -> None:
    if any(isinstance(value, int) and abs(value) > MOST_LENGTH for value in values):
        raise SecurityError(f"a function is given a number beyond {MOST_LENGTH}")
