"""What the rules of quantised checkpoints have in common: names of linear maps, patterns, unknown fields."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterable
from typing import Final, Literal

from atb_models.errors import ConfigError
from atb_models.models.config_fields import Fields
from atb_models.models.quantized.declaration import Declaration
from atb_models.wording import counted, named, shown

logger = logging.getLogger(__name__)

WEIGHT: Final = ".weight"
_MOST_GROUP: Final = 1 << 20
_LAYER: Final = re.compile(r"model\.layers\.\d+\.")


def module_of(weight: str) -> str:
    """The linear map that a weight belongs to."""
    return weight.removesuffix(WEIGHT)


def may_be_integers(weight: str) -> bool:
    """Whether it is the weight of a linear map for which the engine takes integers: not of what is outside of the
    layers, nor of a router or gate of experts, however a checkpoint stores them."""
    if not weight.endswith(WEIGHT) or _LAYER.match(weight) is None:
        return False
    last = module_of(weight).rpartition(".")[2]
    return not last.endswith(("norm", "gate")) and last != "router"


def compiled(declared: Declaration, field: str, text: str) -> re.Pattern[str]:
    """A regular expression of a checkpoint's rule, which is matched from the start of a name."""
    try:
        return re.compile(text)
    except (re.error, RecursionError, OverflowError) as error:
        raise ConfigError(f"{declared.place}: {field} has {shown(text)}, no regular expression: {error}") from None


def as_bits(number: int) -> Literal[4, 8]:
    """One of the two numbers, typed."""
    return 4 if number == 4 else 8


def group_size(fields: Fields, name: str) -> int | None:
    """Inputs that share a scale; None for -1: a whole row."""
    size = fields.integer(name, minimum=-1, maximum=_MOST_GROUP)
    if size == 0:
        raise fields.fail(name, "but must be -1 for whole rows, or at least 1")
    return None if size == -1 else size


def texts_of(declared: Declaration, field: str) -> tuple[str, ...]:
    """A list of texts, empty when absent or null."""
    value = declared.fields.get(field) or []
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise declared.fail(field, "but must be a list of names")
    return tuple(value)


def tell_of_floats(place: str, weights: Iterable[str]) -> None:
    """Name those of the packed weights for which the engine takes floats alone."""
    if outside := [name for name in weights if not may_be_integers(name)]:
        what = counted(len(outside), "quantised weight")
        why = "embeddings, heads and routers are always floats here"
        logger.info("%s: %s, held as floats: %s: %s", place, what, why, named(outside, most=3))


def warn_of_unknown(declared: Declaration, known: Collection[str]) -> None:
    """Name the fields that nothing here asks for."""
    if unknown := declared.fields.keys() - set(known):
        logger.warning("%s: unknown fields are ignored: %s", declared.place, named(unknown))
