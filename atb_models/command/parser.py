"""argparse as all commands use it: a mistake is a ConfigError, and an unknown flag is refused by name."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from atb_models.errors import ConfigError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Options = TypeVar("Options", bound=DataclassInstance)


DEFAULT = "(default: "  # how a flag's help begins its default


class Parser(argparse.ArgumentParser):
    """argparse whose mistakes are ConfigErrors, and whose help shows every flag's default."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"formatter_class": DefaultsFormatter, **options})

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """The arguments. Raises ConfigError, which names the flag, also for one that is unknown."""
        args, extra = self.parse_known_args(list(argv))
        self.refuse(extra)
        return args

    def refuse(self, extra: Sequence[str], *, word_hint: str = "") -> None:
        """Raises ConfigError for the first of `extra`, the words that no argument took; nothing where there are none.

        word_hint: said where that word is no flag.
        """
        if extra and extra[0].startswith("-"):
            self.error(self._unknown_flag(extra[0].split("=")[0]))
        if extra:
            self.error(f"unexpected word {extra[0]!r}{word_hint}")

    def error(self, message: str) -> NoReturn:
        message = re.sub("ignored explicit argument (.*)", r"takes no value, not \1", message)
        raise ConfigError(f"{message} (--help lists the flags)")

    def _unknown_flag(self, name: str) -> str:
        near = difflib.get_close_matches(name, self._option_string_actions, n=1)
        return f"unknown flag {name}" + (f"; did you mean {near[0]}?" if near else "")


class DefaultsFormatter(argparse.HelpFormatter):
    """Shows the default of every flag that takes a value, unless its help has it already.

    Where None stands for something, the help must say for what; else None is shown as none.
    """

    def _get_help_string(self, action: argparse.Action) -> str | None:
        takes_value = action.option_strings and action.nargs != 0 and action.default is not argparse.SUPPRESS
        if not takes_value or DEFAULT in (action.help or ""):
            return action.help
        return f"{action.help} {DEFAULT}{_as_words(action.default)})".lstrip().replace("%", "%%")


def _as_words(default: object) -> str:
    """A default as a user would type it."""
    if default is None:
        return "none"
    if isinstance(default, float):
        return f"{default:g}"
    return ", ".join(map(str, default)) if isinstance(default, list) else str(default)


def typed(args: argparse.Namespace, kind: type[Options]) -> Options:
    """The arguments that a dataclass names, as an instance of it; its fields have the names of flags."""
    return kind(**{field.name: getattr(args, field.name) for field in fields(kind)})
