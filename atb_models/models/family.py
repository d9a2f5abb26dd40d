"""What a model family is: the fields of its config.json, its tensors' names, and the modules that only it has.

Imports no torch, and a family's file does not either: configurations are read before torch is there. A hook that makes
a module imports it when it is called.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from atb_models.models.config import ModelConfig
from atb_models.models.config_fields import Fields
from atb_models.models.weights.names import CheckpointTensor, TensorNames

if TYPE_CHECKING:
    from atb_models.layers.attention import Attention
    from atb_models.layers.build import Build
    from atb_models.layers.latent_attention import LatentAttention


@dataclass(frozen=True)
class Family:
    """The differences of one family from the shared decoder.

    parse_config: its own fields of ModelConfig, and those of its fields that change nothing here, noted in `Fields`.
    chat_template: its documented plain format, for a checkpoint without a chat template.
    defaults: of fields that config.json may leave out, where the published configuration class has other values than
    most; `Fields` gives them to all parsers.
    names: of the tensors that all families have.
    attention: makes a layer's attention, given whether the layer is a mixture of experts (plans look at one layer of
    each kind): a module that is called as layers/attention.py's and declares `planes`; None: plain attention.
    attention_tensors: the checkpoint's tensors of such a layer, given the configuration and the layer's prefix in the
    checkpoint and in the decoder; None: those of plain attention.
    """

    parse_config: Callable[[Fields], dict[str, Any]]
    chat_template: str
    defaults: Mapping[str, Any] = field(default_factory=dict)
    names: TensorNames = field(default_factory=TensorNames)
    attention: Callable[[Build, ModelConfig, bool], Attention | LatentAttention] | None = None
    attention_tensors: Callable[[ModelConfig, str, str], Iterator[CheckpointTensor]] | None = None
