"""Filling a model's parameters from a source of weights: nothing left over, nothing unfilled."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from torch import Tensor, nn
from tqdm import tqdm

from atb_models.errors import CheckpointError
from atb_models.layers.mlp import Experts
from atb_models.layers.parameter import Part, parts_of
from atb_models.models.config import ModelConfig
from atb_models.models.weights.checkpoint import open_checkpoint
from atb_models.models.weights.dummy import DummyWeights
from atb_models.models.weights.names import CheckpointTensor
from atb_models.models.weights.weight_map import checkpoint_tensors

# No thread that watches the bar: its stack and arena are address space that a limited process may not have.
tqdm.monitor_interval = 0

# Told after each tensor how many bytes are loaded, of how many.
listeners: list[Callable[[int, int], None]] = []

_LAYER = re.compile(r"model\.layers\.(\d+)\.")


class WeightSource(Protocol):
    """Where weights come from: a checkpoint folder or dummy values."""

    def names(self) -> set[str]: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def where(self, name: str) -> str: ...

    def read_into(self, name: str, dim: int | None, start: int, stop: int, target: Tensor) -> None: ...

    def close(self) -> None: ...


def open_weights(folder: Path | str, load_format: str, model: nn.Module, config: ModelConfig) -> WeightSource:
    """The source that `load_format` names: "auto" is the checkpoint in `folder`, "dummy" needs none."""
    return DummyWeights(model, config) if load_format == "dummy" else open_checkpoint(folder)


def load_weights(
    model: nn.Module,
    config: ModelConfig,
    source: WeightSource,
    *,
    progress: bool = False,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Fill every part of every parameter of `model` with this rank's slices, read straight to where they belong.

    Presence and shapes of all tensors are checked before the first is read. `progress` shows a bar on stderr.
    `check` is called before each tensor and may raise: it is how a load ends early when another rank has died.
    Raises CheckpointError naming the file and the tensor.
    """
    parts = _match(model, config)
    _check(parts, config, source)
    total = sum(part.target.numel() * part.target.element_size() for _, part in parts)
    done = 0
    with tqdm(total=total, desc="loading weights", unit="B", unit_scale=True, disable=not progress) as bar:
        for weight, part in parts:
            check()
            if part.target.numel():
                source.read_into(weight.name, part.dim, part.start, part.stop, part.target)
            bar.update(part.target.numel() * part.target.element_size())
            done += part.target.numel() * part.target.element_size()
            for listener in listeners:
                listener(done, total)


def prepare_weights(model: nn.Module) -> None:
    """Let the bound backend lay out what has been loaded; takes the memory of one stack of experts more at a time."""
    for module in model.modules():
        if isinstance(module, Experts):
            module.prepare()


def _match(model: nn.Module, config: ModelConfig) -> list[tuple[CheckpointTensor, Part]]:
    """Each tensor with the part that it fills; our own invariant: every part of every parameter exactly once."""
    parameters = dict(model.named_parameters())
    unfilled = {(name, role) for name, parameter in parameters.items() for role in parts_of(parameter)}
    matched = []
    for weight in checkpoint_tensors(config):
        key = (weight.parameter, weight.role)
        assert key in unfilled, f"{weight.name}: no part {key} in the model, or filled twice"
        unfilled.remove(key)
        matched.append((weight, parts_of(parameters[weight.parameter])[weight.role]))
    assert not unfilled, f"nothing fills {sorted(unfilled)}"
    return matched


def _check(parts: list[tuple[CheckpointTensor, Part]], config: ModelConfig, source: WeightSource) -> None:
    """The source holds each tensor in the right shape, and no other that matters."""
    names = source.names()
    missing = [weight.name for weight, _ in parts if weight.name not in names]
    if missing:
        raise CheckpointError(
            f"{source.where(missing[0])} has no tensor {missing[0]}, which config.json asks for"
            f" ({len(missing)} of {len(parts)} tensors are missing)"
        )
    for weight, part in parts:
        shape = source.shape(weight.name)
        if shape != part.shape:
            raise CheckpointError(
                f"{source.where(weight.name)}: tensor {weight.name} has shape {shape},"
                f" but config.json makes it {part.shape}"
            )
    left = sorted(name for name in names - {weight.name for weight, _ in parts} if not _harmless(name, config))
    if left:
        raise CheckpointError(
            f"{source.where(left[0])}: tensor {left[0]} is unexpected, config.json has no place for it"
            f" ({len(left)} such tensors)"
        )


def _harmless(name: str, config: ModelConfig) -> bool:
    """Known leftovers: rotary tables, the copy of a tied head, and layers that config_overrides cut off."""
    if name.endswith(".rotary_emb.inv_freq"):
        return True
    if name == "lm_head.weight":
        return config.tie_word_embeddings
    layer = _LAYER.match(name)
    cut_off = layer is not None and int(layer[1]) >= config.num_hidden_layers
    return cut_off and "num_hidden_layers" in config.overridden
