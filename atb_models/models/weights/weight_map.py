"""Which checkpoint tensor fills which part of which parameter."""

from __future__ import annotations

from collections.abc import Iterator

from atb_models.models.config import ModelConfig
from atb_models.models.families import FAMILIES
from atb_models.models.quantized.scheme import Scheme
from atb_models.models.weights.names import CheckpointTensor, attention_tensors, mlp_tensors, moe_tensors


def checkpoint_tensors(config: ModelConfig) -> Iterator[CheckpointTensor]:
    """Every tensor that a checkpoint of this configuration must hold, in the usual order of its files.

    Of a quantised checkpoint those that are beside its weights are left out (see `names.beside_name`). A linear map or
    a norm may have a bias that config.json does not tell of. With static activations it has one of floats only where
    the scheme says so: that of integers holds the others.
    """
    if (scheme := config.scheme) is None:
        yield from _of_floats(config)
        return
    tensors = list(_of_floats(config))
    own = {tensor.name for tensor in tensors}
    for tensor in tensors:
        weight = f"{tensor.name.removesuffix('.bias')}.weight"
        if not tensor.name.endswith(".bias") or not is_static(scheme, weight) or scheme.has_bias(weight):
            yield tensor
        bias = f"{tensor.name.removesuffix('.weight')}.bias"
        if tensor.name.endswith(".weight") and bias not in own and scheme.has_bias(tensor.name):
            yield CheckpointTensor(bias, f"{tensor.parameter.removesuffix('.weight')}.bias", tensor.role)


def is_static(scheme: Scheme, weight: str) -> bool:
    """Whether the weight takes static activations: its linear map has a bias of integers."""
    storage = scheme.storage(weight)
    return storage is not None and storage.activations == "static"


def _of_floats(config: ModelConfig) -> Iterator[CheckpointTensor]:
    yield CheckpointTensor("model.embed_tokens.weight", "embed.weight", "")
    for i in range(config.num_hidden_layers):
        yield from _layer(config, f"model.layers.{i}", f"layers.{i}", is_moe=config.moe_layers[i])
    yield CheckpointTensor("model.norm.weight", "norm.weight", "")
    if not config.tie_word_embeddings:
        yield CheckpointTensor("lm_head.weight", "lm_head.weight", "")


def _layer(config: ModelConfig, theirs: str, ours: str, *, is_moe: bool) -> Iterator[CheckpointTensor]:
    family = FAMILIES[config.model_type]
    yield CheckpointTensor(f"{theirs}.input_layernorm.weight", f"{ours}.input_norm.weight", "")
    yield from (family.attention_tensors or attention_tensors)(config, theirs, ours)
    yield CheckpointTensor(f"{theirs}.post_attention_layernorm.weight", f"{ours}.post_norm.weight", "")
    if is_moe:
        yield from moe_tensors(config, family.names, theirs, f"{ours}.mlp")
    else:
        yield from mlp_tensors(family.names, f"{theirs}.{family.names.mlp}", f"{ours}.mlp", bias=config.mlp_bias)
