"""The source that a model's weights are read from, seen as the model stores them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from torch import nn

from atb_models.errors import ConfigError
from atb_models.layers.parameter import Filling, fillings
from atb_models.layers.storage import METHODS, Storage
from atb_models.models.config import ModelConfig
from atb_models.models.weights.checkpoint import open_checkpoint
from atb_models.models.weights.dummy import DummyWeights
from atb_models.models.weights.names import beside_name
from atb_models.models.weights.seen.agreeing import Agreeing
from atb_models.models.weights.seen.dequantized import Dequantized
from atb_models.models.weights.seen.dummy_integers import DummyIntegers
from atb_models.models.weights.seen.quantizing import QuantizingWeights
from atb_models.models.weights.seen.regrouped import Groups, Regrouped
from atb_models.models.weights.source import WeightSource
from atb_models.models.weights.weight_map import checkpoint_tensors
from atb_models.wording import counted, named

logger = logging.getLogger(__name__)

DIFFERENT = "a matrix here has parts that are stored in different ways"


class _Tensor(NamedTuple):
    """A tensor of the checkpoint: how the checkpoint stores it, None for floats, and what it fills."""

    name: str
    stored: Storage | None
    filling: Filling
    role: str


def open_weights(
    folder: Path | str,
    load_format: str,
    model: nn.Module,
    config: ModelConfig,
    quantize: str | None = None,
    *,
    log: bool = False,
) -> WeightSource:
    """The source that `load_format` names: "auto" is the checkpoint in `folder`, "dummy" needs none.

    quantize: the method by which floats become what the model stores in fewer bits, while they are read. Weights that a
    checkpoint stores in fewer bits and the model does not become floats; `log` tells of them.
    """
    every = fillings(model)
    tensors = [
        _Tensor(name, None if config.scheme is None else config.scheme.storage(name), every[parameter], role)
        for name, parameter, role in checkpoint_tensors(config)
    ]
    floats = {one.name: one.stored for one in tensors if one.stored and not one.filling.weight.layout.quantized}
    if static := [name for name, storage in floats.items() if storage.activations == "static"]:
        raise ConfigError(f"{named(static, 1)} takes static int8 activations, but is held as floats here; keep it so")
    source = _opened(folder, load_format, model, config, {one.name: one.stored for one in tensors if one.stored})
    integers = [one for one in tensors if one.filling.weight.layout.quantized]
    if made := {one.name: METHODS[quantize] for one in integers if one.stored is None and quantize}:
        source = QuantizingWeights(source, made)
    if floats:
        source = Dequantized(source, floats)
    if log:
        _tell_of_floats(tensors)
    if groups := dict(_groups(integers, made)):
        source = Regrouped(source, groups)
    together = {
        beside_name(one.name, kind): (id(one.filling), one.filling.parts[one.role].unit, kind)
        for one in integers
        for kind in ("input_scale", "input_offset")
        if kind in one.filling.beside
    }
    return Agreeing(source, together) if together else source


def _tell_of_floats(tensors: list[_Tensor]) -> None:
    """Which weights are floats although the checkpoint has them, or the user wants them, as integers; and why."""
    why: dict[tuple[bool, str], list[str]] = {}
    for name, stored, filling, _ in tensors:
        layout = filling.weight.layout
        if layout.instead or (stored and not layout.quantized):
            why.setdefault((stored is not None, layout.instead or DIFFERENT), []).append(name)
    for (is_stored, reason), names in why.items():
        what = counted(len(names), "quantised weight" if is_stored else "weight")
        whose = " of the checkpoint" if is_stored else ""
        logger.info("%s%s, held as floats: %s: %s", what, whose, reason, named(names, 3))


def _opened(
    folder: Path | str, load_format: str, model: nn.Module, config: ModelConfig, stored: dict[str, Storage]
) -> WeightSource:
    """As the checkpoint is, or would be."""
    if load_format == "dummy":
        dummy = DummyWeights(model, config)
        return DummyIntegers(dummy, stored) if stored else dummy
    checkpoint = open_checkpoint(folder, quantized=config.scheme is not None)
    if config.scheme is None:
        return checkpoint
    try:
        return config.scheme.open(checkpoint)
    except BaseException:
        checkpoint.close()
        raise


def _groups(integers: list[_Tensor], made: dict[str, Storage]) -> Iterator[tuple[str, Groups]]:
    """The tensors of scales and offsets whose groups are not the units of the model's weights."""
    for name, stored, filling, role in integers:
        group, unit = (stored or made[name]).group, filling.weight.layout.unit
        if unit is None or unit == group:
            continue
        for kind in ("scale", "offset"):
            if kind in filling.beside:
                yield beside_name(name, kind), Groups(filling.parts[role].shape[1], group, unit)
