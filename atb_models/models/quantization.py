"""How the weights of a model are stored in fewer bits: by the method that a user asks for, or by its checkpoint.

Imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

from atb_models.errors import ConfigError
from atb_models.layers.storage import METHODS, Quantization, Storage
from atb_models.models.config import ModelConfig
from atb_models.models.quantized.scheme import FLOATS, ChosenLayers
from atb_models.models.weights.weight_map import checkpoint_tensors

# Modules of the decoder that have no place for a bias: name -> words for a message.
_WITHOUT_BIAS = {
    "experts": "routed experts do",
    "kv_b": "what makes keys and values of a latent does",
    "router": "a router does",
    "shared_gate": "the gate of a shared expert does",
    "embed": "an embedding does",
    "lm_head": "an output head does",
}


def model_quantization(config: ModelConfig, quantize: str | None) -> Quantization | None:
    """What a model of this configuration is built with. quantize: a key of METHODS; None: as the checkpoint is stored.

    A parameter that several tensors fill is stored as all of them are; they may differ in their groups. Otherwise it is
    held as floats. Raises ConfigError for a method beside a checkpoint of integers, and for a checkpoint whose tensors
    cannot be held together.
    """
    scheme = config.scheme
    if scheme is None:
        return None if quantize is None else Quantization(quantize, every=METHODS[quantize])
    stored: dict[str, dict[str, Storage | None]] = {}
    biases: dict[str, frozenset[str]] = {}
    for name, parameter, role in checkpoint_tensors(config):
        stored.setdefault(parameter, {})[name] = _checked(name, scheme.storage(name))
        if scheme.has_bias(name):
            biases[parameter] = biases.get(parameter, frozenset()) | {role}
            _check_bias(parameter, name)
    storages = {parameter: storage for parameter, by in stored.items() if (storage := _common(by))}
    if quantize is None:
        return Quantization(scheme.method, storages=storages, biases=biases) if storages or biases else None
    if any(storage for by in stored.values() for storage in by.values()):
        raise ConfigError(
            f"quantize is {quantize}, but the checkpoint's weights are quantised already ({scheme.name}); leave it out"
        )
    return Quantization(quantize, every=METHODS[quantize], biases=biases)


def quantization_name(config: ModelConfig, quantize: str | None) -> str | None:
    """The method by which weights are stored: the user's, or the checkpoint's; None: floats."""
    found = model_quantization(config, quantize)
    return found.name if found is not None and found.has_integers else None


def quantization_method(config: ModelConfig, quantize: str | None) -> str | None:
    """The method that made the model's numbers: the user's, or the checkpoint's; None: none did.

    It is the checkpoint's also where the weights become floats while they are read.
    """
    method = quantize if quantize or config.scheme is None else config.scheme.method
    return None if method == FLOATS else method


def _common(storages: dict[str, Storage | None]) -> Storage | None:
    """The storage of a parameter whose tensors have these by name; None: floats."""
    kinds = {storage and replace(storage, group=None) for storage in storages.values()}
    if len(kinds) > 1:
        _check_alike(storages)
        return None
    (kind,) = kinds
    groups = [storage.group for storage in storages.values() if storage is not None]
    return None if kind is None else replace(kind, group=math.gcd(*(group or 0 for group in groups)) or None)


def _check_alike(storages: dict[str, Storage | None]) -> None:
    static = [name for name, storage in storages.items() if storage is not None and storage.activations == "static"]
    others = [name for name in storages if name not in static]
    if static and others:
        raise ConfigError(
            f"{static[0]} takes static int8 activations and {others[0]} does not, but they are parts of one matrix"
            " here; quantise them alike"
        )


def _checked(name: str, storage: Storage | None) -> Storage | None:
    if storage is not None and storage.activations != "float":
        rows = storage.bits == 8 and storage.group is None
        if not rows or (storage.offset and storage.activations == "static"):
            raise ConfigError(f"{name} is stored as {storage}; int8 activations meet int8 rows with one scale alone")
    return storage


def _check_bias(parameter: str, name: str) -> None:
    module = parameter.split(".")[-2]
    if module in _WITHOUT_BIAS:
        raise ConfigError(f"{name} has a bias, which {_WITHOUT_BIAS[module]} not take here")


def layer_kinds(config: ModelConfig) -> list[list[int]]:
    """The layers in groups that are built and run alike, dense ones first, each group and its layers in order.

    The last layer, whose feed-forward takes the tokens that need logits alone, comes last and is a group of its own.
    """
    kinds: dict[tuple[object, ...], list[int]] = {}
    names: dict[int, list[str]] = {}
    if config.scheme is not None:
        for name, parameter, _ in checkpoint_tensors(config):
            if parameter.startswith("layers."):
                names.setdefault(int(parameter.split(".")[1]), []).append(name)
    for layer, is_moe in enumerate(config.moe_layers[:-1]):
        stored = (
            ()
            if config.scheme is None
            else tuple((config.scheme.storage(name), config.scheme.has_bias(name)) for name in names[layer])
        )
        kinds.setdefault((is_moe, *stored), []).append(layer)
    alike = sorted(kinds.values(), key=lambda layers: (config.moe_layers[layers[0]], layers[0]))
    return [*alike, [config.num_hidden_layers - 1]]


def with_layers(config: ModelConfig, layers: Iterable[int]) -> ModelConfig:
    """The same model with these of its layers alone, in this order."""
    layers = tuple(layers)
    moe_layers = tuple(config.moe_layers[layer] for layer in layers)
    scheme = None if config.scheme is None else ChosenLayers(config.scheme, layers)
    return replace(config, num_hidden_layers=len(layers), moe_layers=moe_layers, scheme=scheme)
