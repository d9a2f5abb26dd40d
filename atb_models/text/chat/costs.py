"""How large the results of text methods and filters may be, told from their arguments before they run.

Only those are here whose result may be many times as large as what they are given. The parameters have the names that
Python and Jinja give them, for a template may pass them by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from atb_models.text.chat.sizes import MANY, MOST_BITS, MOST_LENGTH, as_text, check_length, percent_size, text_size

LINE_ENDS: Final = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"  # where str.splitlines divides
LIST_SIZE: Final = 8  # of a list, in the places that its items take

Estimate = Callable[..., float]


def _padded(text: str, width: int = 0, fillchar: str = " ") -> float:
    return max(len(text), width)


def _expanded(text: str, tabsize: int = 8) -> float:
    return len(text) + text.count("\t" if isinstance(text, str) else b"\t") * tabsize


def _replaced(text: str, old: str, new: str, count: int = -1) -> float:
    found = text.count(old)
    return len(text) + (found if count < 0 else min(found, count)) * len(new)


def _joined(separator: str, iterable: Any) -> float:
    return sum(map(len, iterable)) + len(separator) * len(iterable)


def _translated(text: str, table: Any) -> float:
    values = table.values() if isinstance(table, Mapping) else table if isinstance(table, (list, tuple)) else ()
    return len(text) * max((len(value) for value in values if isinstance(value, str)), default=1)


def _bytes_of_number(number: int, length: int = 1, byteorder: str = "big", *, signed: bool = False) -> float:
    return length


# Of texts, bytes and whole numbers.
METHODS: Final[dict[str, Estimate]] = {
    **dict.fromkeys(("center", "ljust", "rjust", "zfill"), _padded),
    "expandtabs": _expanded,
    "join": _joined,
    "replace": _replaced,
    "to_bytes": _bytes_of_number,
    "translate": _translated,
}


def _of_text(value: Any, *args: Any, **options: Any) -> float:
    return text_size(value)


def _batch(value: Any, linecount: int, fill_with: Any = None) -> float:
    lists = len(value) // max(linecount, 1) if hasattr(value, "__len__") else 0
    return max(lists * LIST_SIZE, 0 if fill_with is None else linecount)


def _center(value: Any, width: int = 80) -> float:
    return max(text_size(value), width)


def _format(value: Any, *args: Any, **options: Any) -> float:
    return percent_size(as_text(value, "format"), options or args)


def _indent(s: str, width: int | str = 4, first: bool = False, blank: bool = False) -> float:
    lines = 1 + sum(map(s.count, LINE_ENDS))
    return len(s) + lines * (len(width) if isinstance(width, str) else width)


def _join(value: Any, d: Any = "", attribute: Any = None) -> float:
    return text_size(value) + len(value) * text_size(d)


def _replace(s: Any, old: Any, new: Any, count: int | None = None) -> float:
    text, found, put = (as_text(value, "replace") for value in (s, old, new))
    return _replaced(text, found, put, -1 if count is None else count)


def _round(value: Any, precision: int = 0, method: str = "common") -> float:
    computes_power = method != "common" or precision < 0  # of 10, less than 4 bits a digit
    return abs(precision) * 4 * (MOST_LENGTH // MOST_BITS) if computes_power else 0


def _sorted(value: Any, *args: Any, **options: Any) -> float:
    return len(value) * LIST_SIZE if isinstance(value, str) else 0  # each character with a key


def _slice(value: Any, slices: int, fill_with: Any = None) -> float:
    return slices * LIST_SIZE


def _sum(iterable: Any, attribute: Any = None, start: Any = 0) -> float:
    return text_size((start, iterable)) if isinstance(start, MANY) else 0


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> float:
    step = len(indent) if isinstance(indent, str) else max(indent or 0, 0)
    return text_size(value, 2 + max(map(len, separators or ("",))), step)


def _urlize(
    value: Any,
    trim_url_limit: int | None = None,
    nofollow: bool = False,
    target: str | None = None,
    rel: str | None = None,
    extra_schemes: Any = None,
) -> float:
    size = text_size(value)
    return size + size // 5 * (len(target or "") + len(rel or ""))  # no address is shorter than 5 characters


def _wordwrap(
    s: str,
    width: int = 79,
    break_long_words: bool = True,
    wrapstring: str | None = None,
    break_on_hyphens: bool = True,
) -> float:
    return len(s) * max(len(wrapstring or ""), 1)


FILTERS: Final[dict[str, Estimate]] = {
    **dict.fromkeys(
        "capitalize e escape forceescape lower pprint safe string striptags title trim truncate upper urlencode"
        " wordcount xmlattr".split(),
        _of_text,
    ),
    "batch": _batch,
    "center": _center,
    "format": _format,
    "indent": _indent,
    "join": _join,
    "replace": _replace,
    "round": _round,
    "slice": _slice,
    **dict.fromkeys(("sort", "groupby"), _sorted),
    "sum": _sum,
    "tojson": _to_json,
    "urlize": _urlize,
    "wordwrap": _wordwrap,
}
CONSUMING: Final = frozenset({"join", "sum"})  # methods and filters that read all that an iterator yields


def check_result(table: Mapping[str, Estimate], name: str, args: tuple[Any, ...], options: Mapping[str, Any]) -> None:
    """Raises SecurityError where the method or filter `name` of `table` would make too much of these arguments."""
    if name not in table:
        return
    try:
        check_length(table[name](*args, **options), name)
    except (TypeError, AttributeError):
        pass  # arguments that the function itself refuses, in its own words


def consumable(name: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments, an iterator among them as a list where the function would use it up and it must be measured."""
    if name not in CONSUMING:
        return args
    return tuple(list(value) if isinstance(value, Iterator) else value for value in args)
