"""Types of flag values. Each raises argparse.ArgumentTypeError, which says what is allowed and what was given."""

from __future__ import annotations

import argparse
import math
from typing import Any

from atb_models.errors import ConfigError
from atb_models.json_file import parse_json

AUTO = -1  # in place of a number: the program chooses


def whole_number(text: str, low: int, allowed: str) -> int:
    """A whole number of `low` or more; `allowed` is how the error describes what is allowed."""
    try:
        value = int(text)
    except ValueError:
        value = low - 1
    if value < low:
        raise argparse.ArgumentTypeError(f"must be {allowed}, not {text!r}")
    return value


def positive(text: str) -> int:
    return whole_number(text, 1, "a whole number of 1 or more")


def positive_or_auto(text: str) -> int:
    return AUTO if text == str(AUTO) else whole_number(text, 1, "-1 (automatic) or a whole number of 1 or more")


def positive_number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0, not {text!r}")
    return value


def true_or_false(text: str) -> bool:
    if text not in ("True", "False"):
        raise argparse.ArgumentTypeError(f"must be True or False, not {text!r}")
    return text == "True"


def json_object(text: str) -> dict[str, Any]:
    try:
        value = parse_json(text, "it")
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f'must be a JSON object, as {{"num_hidden_layers": 4}}, not {text!r}')
    return value
