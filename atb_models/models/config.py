"""What the decoder and the loader need to know of a model; config_reader.py makes it from config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from atb_models.layers.latent_sizes import LatentSizes
from atb_models.models.dtypes import AUTO, DEFAULT
from atb_models.models.rope import Rope

if TYPE_CHECKING:
    from atb_models.models.quantized.scheme import Scheme


QkNorm = Literal["head", "wide"]


@dataclass(frozen=True)
class ModelConfig:
    """What the decoder and the loader need to know of a checkpoint, whatever its family."""

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int  # of a dense layer
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int  # of a query
    rms_norm_eps: float
    rope: Rope
    max_position_embeddings: int
    tie_word_embeddings: bool
    qkv_bias: bool
    o_bias: bool
    moe_layers: tuple[bool, ...]  # per layer: mixture of experts or dense
    mlp_bias: bool = False  # of gate, up and down in dense layers
    qk_norm: QkNorm | None = None  # of queries and keys, before they are turned, see layers/qk_norm.py
    clip_qkv: float | None = None  # queries, keys and values are bounded by it, after that norm
    latent: LatentSizes | None = None  # of latent attention; None: plain attention
    extra_layers: int = 0  # beyond num_hidden_layers in the checkpoint, which predict further tokens: not loaded
    num_experts: int = 0  # 0: no layer has any
    num_experts_per_tok: int = 0
    moe_intermediate_size: int = 0  # of one routed expert
    shared_intermediate_size: int = 0  # of all shared experts together; 0 = none
    shared_expert_gate: bool = False  # their output is weighed by each token, see ops.shared_expert_gate
    norm_topk_prob: bool = False  # the chosen experts' weights are divided by their sum plus norm_topk_eps
    norm_topk_eps: float = 0.0
    router_score: Literal["softmax", "sigmoid"] = "softmax"  # this and the next five: see ops/gating.py
    router_bias: bool = False  # a tensor that is added to the scores for the choice alone
    expert_groups: int = 1
    top_expert_groups: int = 1
    expert_group_score: Literal["max", "top2"] = "max"
    routed_scaling_factor: float = 1.0
    torch_dtype: str | None = None  # fp16, bf16 or fp32, as the checkpoint declares
    initializer_range: float = 0.02
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()  # what ends an answer: all that the files below name
    eos_by_file: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # the first alone counts elsewhere
    generation: Mapping[str, object] = field(default_factory=dict)  # sampling defaults, see models/generation.py
    overridden: tuple[str, ...] = ()  # the fields that config_overrides replaced
    scheme: Scheme | None = None  # how a quantised checkpoint stores its tensors; None: as floats

    def run_dtype(self, requested: str) -> str:
        """fp16, bf16 or fp32; "auto" is what the checkpoint declares, fp16 where it declares nothing."""
        return self.torch_dtype or DEFAULT if requested == AUTO else requested
