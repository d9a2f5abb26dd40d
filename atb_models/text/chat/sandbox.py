"""Jinja's sandbox in which no text that takes gigabytes is made: not in one step, and not in all of a rendering.

What may be many times as large as what it is made of is estimated before; every other result is measured. Numbers that
ask for no size are never looked at.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import update_wrapper
from io import StringIO
from pprint import PrettyPrinter
from sys import getsizeof
from types import BuiltinMethodType, MappingProxyType, MethodType
from typing import Any, Final

from jinja2 import nodes, pass_context
from jinja2.compiler import CodeGenerator, Frame
from jinja2.runtime import Context, markup_join, str_join
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedEscapeFormatter, SandboxedFormatter, SecurityError
from jinja2.utils import generate_lorem_ipsum
from markupsafe import Markup

from atb_models.text.chat.costs import FILTERS, METHODS, check_result, consumable
from atb_models.text.chat.sizes import MANY, check_length, check_operation, text_size, whole_number

MOST_BYTES: Final = 1 << 29  # of all texts and lists that one rendering makes, whether it keeps them or not
PER_ITEM: Final = 96  # bytes of a short text and of its place in a list
LONGEST_WORD: Final = 16  # of lipsum, with what stands beside it


class BoundedContext(Context):
    """The names of one rendering, and what it may still make."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._bytes_left = MOST_BYTES

    def spend(self, size: int) -> None:
        """Count bytes that the rendering has made. Raises SecurityError when they are too many."""
        self._bytes_left -= size
        if self._bytes_left < 0:
            raise SecurityError(f"what the template makes is too large: more than {MOST_BYTES} bytes in all")

    def made(self, value: Any, what: str, *, of_text: bool = False) -> Any:
        """The value, measured and counted. of_text: a list in it holds texts that are new too."""
        if isinstance(value, MANY):
            check_length(len(value), what)
            self.spend(getsizeof(value) * (8 if of_text and isinstance(value, (list, tuple)) else 1))
        return value

    def each(self, values: Iterator[Any]) -> Iterator[Any]:
        """The values, counted as they come."""
        for value in values:
            self.spend(getsizeof(value) if isinstance(value, list) else PER_ITEM)
            yield value

    def concat(self, parts: Iterable[str]) -> str:
        """The text of a block or macro."""
        return str(self.made(bounded_concat(parts), "a block"))

    def joined(self, parts: tuple[Any, ...]) -> Any:
        """The result of `~`."""
        check_length(sum(map(text_size, parts)), "an operation ~")
        join = markup_join if self.eval_ctx.autoescape else str_join
        return self.made(join(parts), "an operation ~")

    def sliced(self, value: Any) -> Any:
        """The result of [a:b:c]."""
        return self.made(value, "a slice")


class BoundedCode(CodeGenerator):
    """Lets texts that are joined and sliced go through the context."""

    def write_commons(self) -> None:
        """As Jinja's, with the context's way to join the parts of a block or macro."""
        super().write_commons()
        self.writeline("concat = context.concat")

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        """a ~ b."""
        self.write("context.joined((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:
        """a[b] and a[b:c]."""
        is_slice = isinstance(node.arg, nodes.Slice)
        self.write("context.sliced(" if is_slice else "")
        super().visit_Getitem(node, frame)
        self.write(")" if is_slice else "")


class BoundedFormatter(SandboxedFormatter):
    """str.format whose result has a bound."""

    _length = 0

    def convert_field(self, value: Any, conversion: Any) -> Any:
        """The field's value after !s, !r or !a. Raises SecurityError for a collection whose text is too large."""
        check_length(text_size(value), "format")
        return super().convert_field(value, conversion)

    def format_field(self, value: Any, format_spec: str) -> Any:
        """The field's text. Raises SecurityError where it, with those before, would be too large."""
        self._length += text_size(value) + sum(map(whole_number, re.findall(r"\d+", format_spec)))
        check_length(self._length, "format")
        return super().format_field(value, format_spec)


class BoundedEscapeFormatter(BoundedFormatter, SandboxedEscapeFormatter):
    """The same for text that is marked as HTML."""


def bounded_concat(parts: Iterable[str]) -> str:
    """The parts as one text. Raises SecurityError as soon as they are too large, or too many."""
    texts, length = [], 0
    for part in parts:
        length += len(part) or 1
        check_length(length, "a template")
        texts.append(part)
    return "".join(texts)


class BoundedSandbox(ImmutableSandboxedEnvironment):
    """The environment. filters: those that take the place of Jinja's or stand beside them; later none can be added."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})
    code_generator_class = BoundedCode
    context_class = BoundedContext
    concat = staticmethod(bounded_concat)  # of what a template yields; blocks and macros have the context's

    def __init__(self, *, filters: Mapping[str, Callable[..., Any]], **options: Any) -> None:
        super().__init__(finalize=_finalize, **options)
        given = {**self.filters, "pprint": _pprint, **filters}
        bounded: Any = MappingProxyType({name: _bounded(name, function) for name, function in given.items()})
        self.filters = bounded
        self.globals["lipsum"] = _lipsum

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """The result of an operation. Raises SecurityError for one that would be too large."""
        check_operation(operator, left, right)
        return _bounded_of(context).made(super().call_binop(context, operator, left, right), f"an operation {operator}")

    def call(self, context: Context, function: Any, /, *args: Any, **options: Any) -> Any:
        """The result of a call. Raises SecurityError for a method of a text that would make too much."""
        function = self.wrap_str_format(function) or function  # Jinja before 3.1.5 has not done so yet
        method = getattr(function, "__wrapped__", function)  # of str.format, which is not called itself
        owner = getattr(method, "__self__", None)
        if not isinstance(owner, (str, bytes, int)):
            return super().call(context, function, *args, **options)
        name = method.__name__
        args = consumable(name, args)
        named = {key: value for key, value in options.items() if key not in ("_loop_vars", "_block_vars")}
        check_result(METHODS, name, (owner, *args), named)
        result = super().call(context, function, *args, **options)
        return result if result is owner else _bounded_of(context).made(result, name, of_text=True)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """str.format and str.format_map as the sandbox allows them, None for other values."""
        if not isinstance(value, (MethodType, BuiltinMethodType)) or not isinstance(value.__self__, str):
            return None
        if value.__name__ not in ("format", "format_map"):
            return None
        text, takes_mapping = value.__self__, value.__name__ == "format_map"

        def formatted(*args: Any, **options: Any) -> str:
            if takes_mapping and options:
                raise TypeError("format_map() takes no keyword arguments")
            if takes_mapping and len(args) != 1:
                raise TypeError(f"format_map() takes exactly one argument ({len(args)} given)")
            formatter = (
                BoundedEscapeFormatter(self, escape=text.escape) if isinstance(text, Markup) else BoundedFormatter(self)
            )
            positional, mapping = ((), args[0]) if takes_mapping else (args, options)
            return type(text)(formatter.vformat(text, positional, mapping))

        return update_wrapper(formatted, value)


def _bounded_of(context: Context) -> BoundedContext:
    assert isinstance(context, BoundedContext)
    return context


def _bounded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter whose result has a bound. As it takes the context, Jinja does not compute it while compiling."""
    wanted = getattr(function, "jinja_pass_arg", None)  # set by Jinja's pass_context and its siblings

    @pass_context
    def filtered(context: BoundedContext, /, *args: Any, **options: Any) -> Any:
        args = consumable(name, args)
        check_result(FILTERS, name, args, options)
        first = {"context": context, "eval_context": context.eval_ctx, "environment": context.environment}
        result = function(*(() if wanted is None else (first[wanted.name],)), *args, **options)
        if isinstance(result, Iterator):
            return context.each(result)
        is_new = all(result is not value for value in args)
        return context.made(result, name, of_text=isinstance(args[0], str)) if is_new else result

    return filtered


@pass_context
def _finalize(context: BoundedContext, value: Any) -> Any:
    """What `{{ }}` shows, before Jinja makes it text."""
    if not isinstance(value, str):
        size = text_size(value)
        check_length(size, "a value as text")
        context.spend(size)
    return value


def _pprint(value: Any) -> str:
    """As pprint.pformat. Raises SecurityError as soon as indents make it too large."""
    lines = _Lines()
    PrettyPrinter(stream=lines).pprint(value)
    return lines.getvalue()[:-1]  # without the last line's end


class _Lines(StringIO):
    """A stream with a bound."""

    def write(self, text: str) -> int:
        """As StringIO's. Raises SecurityError for what would make it too large."""
        check_length(self.tell() + len(text), "pprint")
        return super().write(text)


def _lipsum(n: int = 5, html: bool = True, min: int = 20, max: int = 100) -> str:
    check_length(n * max * LONGEST_WORD, "lipsum")
    return generate_lorem_ipsum(n, html, min, max)
