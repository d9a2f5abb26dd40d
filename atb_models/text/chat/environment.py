"""Where chat templates run: Jinja's sandbox with what transformers adds to it, for published templates use it all.

Source: transformers 4.36 (tokenization_utils_base.py) and, for the tag `generation`, loop controls, `strftime_now` and
the arguments of `tojson`, what its later releases added (utils/chat_template_utils.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser

from atb_models.text.chat.sandbox import BoundedSandbox
from atb_models.text.chat.sizes import check_length, text_size

LONGEST_DATE = 256  # characters that Python lets the system write for each one of a date's form


class Generation(Extension):
    """`{% generation %}` marks the assistant's words for training; the text within is as without it.

    As in transformers it is a block of its own: what is set within is not known outside.
    """

    tags = {"generation"}  # noqa: RUF012 (Jinja's own interface)

    def parse(self, parser: Parser) -> nodes.CallBlock:
        """The block up to `{% endgeneration %}`."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        block = nodes.CallBlock(self.call_method("_within"), [], [], body)
        block.set_lineno(line)
        return block

    def _within(self, caller: Callable[[], str]) -> str:
        return caller()


def make_environment() -> BoundedSandbox:
    """An environment for chat templates, which are code of strangers."""
    environment = BoundedSandbox(
        filters={"tojson": _to_json},
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[Generation, "jinja2.ext.loopcontrols"],
    )
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _raise_exception(message: str) -> NoReturn:
    check_length(text_size(message), "raise_exception")
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    check_length(text_size(form) * LONGEST_DATE, "strftime_now")
    return datetime.now().strftime(form)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Unlike Jinja's own filter it leaves <, >, & and ' as they are and the keys in their order."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
