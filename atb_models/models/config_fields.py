"""Typed access to the fields of config.json; what was never asked for is what this project does not know."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

from atb_models.errors import ConfigError
from atb_models.models.config_bounds import MOST, MOST_INTEGER, MOST_ITEMS, RANGES
from atb_models.models.config_neutral import squeezed
from atb_models.wording import named, shown

REQUIRED: Final = object()


class Fields:
    """The raw fields of one JSON file. Each getter checks type and range and notes the field as known.

    overrides: fields that replace those of the file. Ranges that a getter does not give are those of config_bounds.py.
    """

    def __init__(self, raw: Mapping[str, Any], file: Path, overrides: Mapping[str, Any] | None = None) -> None:
        self.overrides = dict(overrides or {})
        self.raw = {**raw, **self.overrides}
        self.defaults: Mapping[str, Any] = {}  # of the family's published configuration class, for absent fields
        self.file = file
        self.known: set[str] = set()
        self.without_effect: set[str] = set()  # beside the values that other fields have
        self._removable = raw.keys()

    def fail(self, name: str, why: str) -> ConfigError:
        """The error for a field whose value cannot be honoured."""
        where = "config_overrides" if name in self.overrides else self.file
        return ConfigError(f"{where}: {name} is {shown(self.raw.get(name))}, {why}")

    def get(self, name: str, default: Any = None) -> Any:
        """The value as it stands, `default` when absent or null; ConfigError when required and absent."""
        self.known.add(name)
        value = self.raw.get(name, self.defaults.get(name))
        if value is None and default is REQUIRED:
            state = "null" if name in self.raw else "missing"
            raise ConfigError(f"{self.file}: {name} is {state}, but the model cannot be built without it")
        return default if value is None else value

    def integer(self, name: str, default: Any = REQUIRED, minimum: int = 1, maximum: int | None = None) -> int:
        """An integer from `minimum` to `maximum`; None: what config_bounds.py says."""
        value, most = self.get(name, default), MOST.get(name, MOST_INTEGER) if maximum is None else maximum
        if not isinstance(value, int) or isinstance(value, bool) or not minimum <= value <= most:
            raise self.fail(name, f"but must be an integer of at least {minimum} and at most {most}")
        return value

    def optional_integer(self, name: str, minimum: int = 1) -> int | None:
        """An integer of at least `minimum`, or None when absent or null."""
        return None if self.get(name) is None else self.integer(name, minimum=minimum)

    def number(self, name: str, default: Any = REQUIRED, minimum: float = 0.0, *, exclusive: bool = True) -> float:
        """A finite number in the range that config_bounds.py gives it, or above `minimum` (or equal to it, unless
        `exclusive`)."""
        value = self.get(name, default)
        number = _float(value)
        if name in RANGES:
            low, high = RANGES[name]
            if number is None or not low <= number <= high:
                raise self.fail(name, f"but must be a number from {low:g} to {high:g}")
        elif number is None or number < minimum or (exclusive and number == minimum):
            raise self.fail(name, f"but must be a number {'above' if exclusive else 'of at least'} {minimum:g}")
        return number

    def flag(self, name: str, default: bool) -> bool:
        """true or false."""
        value = self.get(name, default)
        if not isinstance(value, bool):
            raise self.fail(name, "but must be true or false")
        return value

    def choice(self, name: str, supported: tuple[str, ...], default: Any = REQUIRED) -> str:
        """One of the supported words."""
        value = self.get(name, default)
        if value not in supported:
            raise self.fail(name, f"but only {', '.join(map(repr, supported))} is supported")
        return str(value)

    def only(self, name: str, allowed: tuple[Any, ...]) -> None:
        """Refuse any value but those that change nothing. Letter case and separators of words do not matter."""
        value = self.get(name)
        words = {squeezed(word) for word in allowed if isinstance(word, str)}
        if (squeezed(value) not in words) if isinstance(value, str) else (value not in allowed):
            choice = [value for value in allowed if value is not None][:1] or [None]
            raise self.fail(name, f"but only {choice[0]!r} is supported")

    def token_ids(self, name: str, sequence_hint: str = "") -> tuple[int, ...] | None:
        """A token id or a list of them, None when absent or null; [[1], [2]] is read as [1, 2]."""
        value = self.get(name)
        if value is None:
            return None
        items = value if isinstance(value, list) else [value]
        flat = [item[0] if isinstance(item, list) and len(item) == 1 else item for item in items]
        if len(items) > MOST_ITEMS or not all(type(item) is int and 0 <= item <= MOST_INTEGER for item in flat):
            raise self.fail(name, f"but must be a token id or a list of token ids{sequence_hint}")
        return tuple(dict.fromkeys(flat))

    def integers(self, name: str) -> frozenset[int]:
        """A list of integers of at least 0, empty when absent or null."""
        value = self.get(name, [])
        fits = isinstance(value, list) and all(type(item) is int and 0 <= item <= MOST_INTEGER for item in value)
        if not fits or len(value) > MOST_ITEMS:
            raise self.fail(name, f"but must be a list of integers of at least 0, at most {MOST_ITEMS} of them")
        return frozenset(value)

    def check_overrides(self) -> None:
        """Refuse an override that no getter ever asked for: it would be accepted and ignored.

        null takes a field of the file away, whichever it is.
        """
        for name, value in self.overrides.items():
            if name in self.known or (value is None and name in self._removable):
                continue
            close = get_close_matches(name, sorted(self.known), n=3, cutoff=0.5)
            hint = f"; did you mean {' or '.join(close)}?" if close else f"; known: {', '.join(sorted(self.known))}"
            raise ConfigError(f"config_overrides: {named([name])} is no field that changes this model{hint}")


def _float(value: object) -> float | None:
    """The number as a finite float; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:  # an integer that no float holds
        return None
    return number if math.isfinite(number) else None


def no_sliding_window(fields: Fields) -> None:
    """Note sliding_window where only null leaves a layer without one; ConfigError for one that hides any position."""
    window, positions = fields.optional_integer("sliding_window"), fields.integer("max_position_embeddings")
    if window is not None and window < positions:
        raise fields.fail(
            "sliding_window",
            f"but sliding windows are not supported; for texts of up to {window} tokens it makes no difference:"
            f" --config_overrides '{json.dumps({'max_position_embeddings': window})}' allows no longer ones",
        )


def switched_sliding_window(fields: Fields) -> None:
    """The same where use_sliding_window, which is refused when true, alone brings windows to life."""
    fields.without_effect |= {"sliding_window", "max_window_layers"}


def sparse_layers(fields: Fields) -> tuple[bool, ...]:
    """Experts in every decoder_sparse_step-th layer that mlp_only_layers does not name."""
    dense, step = fields.integers("mlp_only_layers"), fields.integer("decoder_sparse_step", 1)
    return tuple(i not in dense and (i + 1) % step == 0 for i in range(fields.integer("num_hidden_layers")))


def attention_bias(fields: Fields) -> dict[str, Any]:
    """qkv_bias and o_bias where one field, attention_bias, stands for both."""
    bias = fields.flag("attention_bias", False)
    return {"qkv_bias": bias, "o_bias": bias}
