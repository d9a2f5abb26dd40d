"""The fields of config.json that tell of rotary positions, in the old or the newer spelling."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from atb_models.models.config_fields import Fields
from atb_models.models.rope import LinearScaling, Llama3, Pairs, Rope, Scaling, Yarn
from atb_models.wording import named


def rope_fields(fields: Fields, width: int, pairs: Pairs = "half") -> Rope:
    """How the first `width` values of a head are turned.

    Old: rope_theta and rope_scaling {"type" or "rope_type", "factor" ...}; newer: rope_parameters holds all of them.
    Raises ConfigError for a scaling that is not known and for what does not belong to it.
    """
    theta, scaling = fields.number("rope_theta", 10000.0), None
    for name in ("rope_scaling", "rope_parameters"):
        given = fields.get(name)
        if given is None:
            continue
        if not isinstance(given, dict):
            raise fields.fail(name, 'but must be null or an object such as {"type": "linear", "factor": 2.0}')
        read = READERS[_kind(fields, name, given)]
        inner = Fields(given, Path(f"{fields.file}: {name}"))
        theta = inner.number("rope_theta", theta)
        scaling = read(inner)
        left = given.keys() - inner.known - {"type", "rope_type", "factor"}
        if left:
            raise fields.fail(name, f"and {named(left)} in it is not supported")
    if isinstance(scaling, Yarn) and theta == 1.0:
        raise fields.fail("rope_theta", "but must be above 1 for yarn")
    return Rope(theta, width, pairs, scaling)


def _kind(fields: Fields, name: str, given: dict[str, Any]) -> str:
    kinds = [kind for kind in (given.get("type"), given.get("rope_type")) if kind is not None]
    if not kinds and "factor" not in given:
        return "default"
    if not kinds or kinds[0] not in list(READERS) or kinds[-1] != kinds[0]:
        supported = ", ".join(repr(kind) for kind in READERS if kind != "default")
        raise fields.fail(name, f"but only null and the types {supported} are supported")
    return str(kinds[0])


def _linear(inner: Fields) -> LinearScaling:
    return LinearScaling(inner.number("factor"))


def _llama3(inner: Fields) -> Llama3:
    low, high = inner.number("low_freq_factor"), inner.number("high_freq_factor")
    if high <= low:
        raise inner.fail("high_freq_factor", f"but must be above low_freq_factor, which is {low:g}")
    return Llama3(inner.number("factor"), low, high, inner.integer("original_max_position_embeddings"))


def _yarn(inner: Fields) -> Yarn:
    fast, slow = inner.number("beta_fast", 32.0), inner.number("beta_slow", 1.0)
    if fast <= slow:
        raise inner.fail("beta_slow", f"but must be below beta_fast, which is {fast:g}")
    inner.only("truncate", (None, True))
    return Yarn(
        inner.number("factor"),
        inner.integer("original_max_position_embeddings"),
        fast,
        slow,
        inner.number("mscale", 1.0),
        inner.number("mscale_all_dim", 0.0),
        None if inner.get("attention_factor") is None else inner.number("attention_factor"),
    )


READERS: Final[dict[str, Callable[[Fields], Scaling | None]]] = {
    "default": lambda inner: None,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
}
