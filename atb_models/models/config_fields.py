"""Typed access to the fields of config.json; what was never asked for is what this project does not know."""

from __future__ import annotations

import math
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

from atb_models.errors import ConfigError

REQUIRED: Final = object()


class Fields:
    """The raw fields of one JSON file. Each getter checks type and range and notes the field as known."""

    def __init__(self, raw: Mapping[str, Any], file: Path) -> None:
        self.raw = raw
        self.file = file
        self.known: set[str] = set()
        self.without_effect: set[str] = set()  # beside the values that other fields have

    def fail(self, name: str, why: str) -> ConfigError:
        """The error for a field whose value cannot be honoured."""
        return ConfigError(f"{self.file}: {name} is {self.raw.get(name)!r}, {why}")

    def get(self, name: str, default: Any = None) -> Any:
        """The value as it stands, `default` when absent or null; ConfigError when required and absent."""
        self.known.add(name)
        value = self.raw.get(name)
        if value is None and default is REQUIRED:
            state = "null" if name in self.raw else "missing"
            raise ConfigError(f"{self.file}: {name} is {state}, but the model cannot be built without it")
        return default if value is None else value

    def integer(self, name: str, default: Any = REQUIRED, minimum: int = 1) -> int:
        """An integer of at least `minimum`."""
        value = self.get(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
            raise self.fail(name, f"but must be an integer of at least {minimum}")
        return value

    def optional_integer(self, name: str, minimum: int = 1) -> int | None:
        """An integer of at least `minimum`, or None when absent or null."""
        return None if self.get(name) is None else self.integer(name, minimum=minimum)

    def number(self, name: str, default: Any = REQUIRED, minimum: float = 0.0, *, exclusive: bool = True) -> float:
        """A finite number above `minimum` (or equal to it, unless `exclusive`)."""
        value = self.get(name, default)
        fits = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if not fits or value < minimum or (exclusive and value == minimum):
            raise self.fail(name, f"but must be a number {'above' if exclusive else 'of at least'} {minimum:g}")
        return float(value)

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

    def token_ids(self, name: str, sequence_hint: str = "") -> tuple[int, ...] | None:
        """A token id or a list of them, None when absent or null; [[1], [2]] is read as [1, 2]."""
        value = self.get(name)
        if value is None:
            return None
        items = value if isinstance(value, list) else [value]
        flat = [item[0] if isinstance(item, list) and len(item) == 1 else item for item in items]
        if not all(isinstance(item, int) and not isinstance(item, bool) and item >= 0 for item in flat):
            raise self.fail(name, f"but must be a token id or a list of token ids{sequence_hint}")
        return tuple(dict.fromkeys(flat))

    def integers(self, name: str) -> tuple[int, ...]:
        """A list of integers of at least 0, empty when absent or null."""
        value = self.get(name, [])
        fits = isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)
        if not fits:
            raise self.fail(name, "but must be a list of integers of at least 0")
        return tuple(value)

    def check_overrides(self, overrides: Mapping[str, Any]) -> None:
        """Refuse an override that no getter ever asked for: it would be accepted and ignored."""
        for name in overrides:
            if name in self.known:
                continue
            close = get_close_matches(name, sorted(self.known), n=3, cutoff=0.5)
            hint = f"; did you mean {' or '.join(close)}?" if close else f"; known: {', '.join(sorted(self.known))}"
            raise ConfigError(f"config_overrides: {name} is no field that changes this model{hint}")


def attention_bias(fields: Fields) -> dict[str, Any]:
    """qkv_bias and o_bias where one field, attention_bias, stands for both."""
    bias = fields.flag("attention_bias", False)
    return {"qkv_bias": bias, "o_bias": bias}


def rope_fields(fields: Fields) -> dict[str, float]:
    """rope_theta and the factor of linear position interpolation (1 = none), in the old or the newer spelling.

    Old: rope_theta and rope_scaling {"type" or "rope_type", "factor"}; newer: rope_parameters holds all of them.
    """
    rope = {"rope_theta": fields.number("rope_theta", 10000.0), "rope_scaling_factor": 1.0}
    for name in ("rope_scaling", "rope_parameters"):
        scaling = fields.get(name)
        if scaling is None:
            continue
        if not isinstance(scaling, dict):
            raise fields.fail(name, 'but must be null or an object such as {"type": "linear", "factor": 2.0}')
        inner = Fields(scaling, Path(f"{fields.file}: {name}"))
        kinds = {kind for kind in (scaling.get("type"), scaling.get("rope_type")) if kind is not None}
        if kinds == {"linear"}:
            rope["rope_scaling_factor"] = inner.number("factor")
        elif kinds - {"default"} or (not kinds and "factor" in scaling):
            raise fields.fail(name, "but only null and the type 'linear' are supported")
        if "rope_theta" in scaling:
            rope["rope_theta"] = inner.number("rope_theta")
        left = scaling.keys() - inner.known - {"type", "rope_type", "factor"}
        if left:
            raise fields.fail(name, f"and {', '.join(sorted(left))} in it is not supported")
    return rope
