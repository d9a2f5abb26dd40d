"""Filling a model's parameters from a source of weights: nothing left over, nothing unfilled."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from torch import nn
from tqdm import tqdm

from atb_models.errors import CheckpointError
from atb_models.layers.parameter import Filling, Part, fillings
from atb_models.models.config import ModelConfig
from atb_models.models.weights.finite import NotFinite
from atb_models.models.weights.names import KV_SCALES, CheckpointTensor, beside_name
from atb_models.models.weights.packer import Matched, Packer
from atb_models.models.weights.seen.reordered import Reordered
from atb_models.models.weights.source import WeightSource
from atb_models.models.weights.weight_map import checkpoint_tensors
from atb_models.wording import named, shown

# Told after each tensor how many bytes are loaded, of how many.
listeners: list[Callable[[int, int], None]] = []

_LAYER = re.compile(r"model\.layers\.(\d+)\.")


class ProgressBar(tqdm):
    """A bar without a thread that watches it, whose stack and arena are address space that may be limited."""

    monitor_interval = 0


def check_weights(model: nn.Module, config: ModelConfig, source: WeightSource) -> None:
    """Raise CheckpointError, naming file and tensor, unless the source has the tensors of `model` in their shapes."""
    _check(_match(model, config), config, source)


def load_weights(
    model: nn.Module,
    config: ModelConfig,
    source: WeightSource,
    *,
    progress: bool = False,
    check: Callable[[], None] = lambda: None,
) -> list[NotFinite]:
    """Fill every part of every parameter of `model` with this rank's slices.

    They are read straight to where they belong, or, where the backend packs its weights, matrix by matrix to a plain
    one that is packed then: no more than one matrix lies beside the weights.

    Presence and shapes of all tensors are checked before the first is read. `progress` shows a bar on stderr.
    `check` is called before each tensor and may raise: it is how a load ends early when another rank has died.
    Returns the tensors with numbers that are not finite, be it only in the data type that they are loaded to.
    Raises CheckpointError naming the file and the tensor.
    """
    matched = _match(model, config)
    _check(matched, config, source)
    total = sum(_bytes(filling, part) for _, filling, part in matched)
    done = 0
    found = []
    packing = Packer(matched)
    with ProgressBar(total=total, desc="loading weights", unit="B", unit_scale=True, disable=not progress) as bar:
        for tensor, filling, part in matched:
            check()
            rows = source if part.order is None else Reordered(source, part.order)
            numbers = 0
            for piece in packing.pieces(filling, part):
                if piece.target.numel():
                    numbers += rows.read_into(tensor.name, *piece)
            if numbers:
                found.append(NotFinite(tensor.name, part.start, numbers))
            done += _bytes(filling, part)
            bar.update(_bytes(filling, part))
            for listener in listeners:
                listener(done, total)
    return found


def _bytes(filling: Filling, part: Part) -> int:
    return part.numel * filling.weight.layout.dtype.itemsize


def _match(model: nn.Module, config: ModelConfig) -> list[Matched]:
    """Each tensor with the part that it fills, those of a matrix one after the other, a quantised weight before what
    is beside it; our own invariant: every part of every parameter exactly once."""
    every = fillings(model)
    beside = {f"{name}_{kind}" for name, filling in every.items() for kind in filling.weight.beside}
    strays = {name for name, _ in model.named_parameters()} - every.keys() - beside
    assert not strays, f"nothing fills {sorted(strays)}"
    unfilled = {(name, role) for name, filling in every.items() for role in filling.parts}
    matched = []
    for tensor in checkpoint_tensors(config):
        key = (tensor.parameter, tensor.role)
        assert key in unfilled, f"{tensor.name}: no part {key} in the model, or filled twice"
        unfilled.remove(key)
        filling = every[tensor.parameter]
        matched.append(Matched(tensor, filling, filling.parts[tensor.role]))
        matched += _beside(matched[-1])
    assert not unfilled, f"nothing fills {sorted(unfilled)}"
    first: dict[tuple[int, int | None], int] = {}
    return sorted(matched, key=lambda one: first.setdefault((id(one.filling), one.part.unit), len(first)))


def _beside(weight: Matched) -> Iterator[Matched]:
    """The tensors beside a quantised weight: its scales and what else there is."""
    name, parameter, role = weight.tensor
    for kind, filling in weight.filling.beside.items():
        tensor = CheckpointTensor(beside_name(name, kind), f"{parameter}_{kind}", role)
        yield Matched(tensor, filling, filling.parts[role])


def _check(matched: list[Matched], config: ModelConfig, source: WeightSource) -> None:
    """The source holds each tensor in the right shape, and no other that matters."""
    names = source.names()
    missing = [tensor.name for tensor, _, _ in matched if tensor.name not in names]
    if missing:
        raise CheckpointError(
            f"{source.where(missing[0])} has no tensor {missing[0]}, which config.json asks for"
            f" ({len(missing)} of {len(matched)} tensors are missing)"
        )
    for tensor, _, part in matched:
        shape = source.shape(tensor.name)
        if shape != part.shape:
            raise CheckpointError(
                f"{source.where(tensor.name)}: tensor {tensor.name} has shape {shown(shape)},"
                f" but config.json makes it {part.shape}"
            )
    rest = names - {tensor.name for tensor, _, _ in matched} - source.spare()
    left = sorted(name for name in rest if not _harmless(name, config))
    if left:
        raise CheckpointError(
            f"{source.where(left[0])}: tensor {named(left[:1])} is unexpected, config.json has no place for it"
            f" ({len(left)} such tensors)"
        )


def _harmless(name: str, config: ModelConfig) -> bool:
    """Known leftovers: rotary tables, scales of a KV cache, the copy of a tied head, layers that config_overrides cut
    off, and those that predict further tokens."""
    if name.endswith((".rotary_emb.inv_freq", *KV_SCALES)):
        return True
    if name == "lm_head.weight":
        return config.tie_word_embeddings
    layer = _LAYER.match(name)
    if layer is None or int(layer[1]) < config.num_hidden_layers:
        return False
    beyond = int(layer[1]) >= config.num_hidden_layers + config.extra_layers
    return not beyond or "num_hidden_layers" in config.overridden
