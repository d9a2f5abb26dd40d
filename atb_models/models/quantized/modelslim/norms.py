"""Norms whose outliers were moved into the linear maps behind them: another weight, and a bias after the norm."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from atb_models.errors import ConfigError
from atb_models.wording import named

ANTI, ANTI_BIAS = ".module.weight", ".module.bias"
# Of a layer of the decoder: norm -> the linear maps that it feeds, by the beginning of their names.
_FEEDS = {
    "input_layernorm": ("self_attn.q_proj.", "self_attn.k_proj.", "self_attn.v_proj."),
    "post_attention_layernorm": ("mlp.",),
}


def find_norms(names: Collection[str], quantized: Collection[str], place: str) -> dict[str, str]:
    """The name that a float checkpoint has -> the stored tensor, for norms of the older saver; the rest is as named.

    That saver writes the changed norm as `<norm>.module.weight` and `.bias`. Beside them `<norm>.weight` is the same
    where `<norm>.bias` is there, and else the norm as it was, for linear maps that stayed floats. Raises ConfigError
    where a norm feeds both kinds of map: one norm cannot serve both.
    """
    found: dict[str, str] = {}
    for anti in sorted(name for name in names if name.endswith(ANTI)):
        norm = anti.removesuffix(ANTI)
        if f"{norm}.bias" in names:
            continue
        if f"{norm}.weight" not in names or _feeds_quantized(norm, names, quantized, place):
            found |= {f"{norm}.weight": anti, f"{norm}.bias": norm + ANTI_BIAS}
    return found


def _feeds_quantized(norm: str, names: Collection[str], quantized: Collection[str], place: str) -> bool:
    """Whether the maps behind a norm are quantised, rather than floats."""
    layer, _, kind = norm.rpartition(".")
    fed = set(_fed(f"{layer}.", _FEEDS.get(kind, ()), names))
    floats = fed.difference(quantized)
    if floats and floats != fed:
        raise ConfigError(
            f"{place}: {norm} feeds {named(floats, most=1)}, which is floats, and {named(fed - floats, most=1)}, which"
            " is quantised, and has another weight for each; one norm of a layer cannot serve both: quantise without"
            " that outlier suppression, or keep all of these maps floats"
        )
    return bool(fed - floats)


def _fed(layer: str, starts: tuple[str, ...], names: Collection[str]) -> Iterator[str]:
    for name in names:
        if name.endswith(".weight") and name.startswith(tuple(layer + start for start in starts)):
            if not name.endswith(".down_proj.weight"):
                yield name
