"""Named operations: all tensor work of a model goes through them, and only they know of a device.

Shape letters used in tensor names throughout the project:

    T tokens of a step     B sequences of a step     H hidden size      N attention heads    M KV (key-value) heads
    D head dimension       E routed experts          K experts a token  F expert width       R = T * K routed rows
    V vocabulary           L rows that get logits    I, O input and output features of a linear map
    P KV blocks            S slots of a block        C blocks in the longest block table
    Z width of a latent    Y rotary values of a head
"""

from atb_models.ops.attention import paged_attention, reshape_and_cache, rope, rope_and_cache, rope_tables
from atb_models.ops.basic import (
    add,
    add_rms_norm,
    clip,
    embedding,
    linear,
    norm_by_sums,
    rms_norm,
    select_rows,
    square_sums,
    swiglu,
    to_float,
)
from atb_models.ops.collectives import all_gather, all_reduce
from atb_models.ops.composite.decoder import decoder
from atb_models.ops.gating import moe_gating
from atb_models.ops.latent.attention import latent_attention
from atb_models.ops.latent.cache import latent_cache, rope_and_latent_cache
from atb_models.ops.moe import (
    count_expert_tokens,
    grouped_matmul,
    moe_experts,
    moe_finalize_routing,
    moe_init_routing,
    router,
    shared_expert_gate,
)
from atb_models.ops.quantized.experts import moe_route_scales, quant_grouped_matmul, quant_moe_experts
from atb_models.ops.quantized.linear import quant_linear, quant_matmul, quantize, quantize_static
from atb_models.ops.sublayers import attention_sublayer, feed_forward_sublayer
from atb_models.ops.table import bind, kv_plane_shape, laid_out_for, operations
from atb_models.ops.top_logits import top_logits

__all__ = [
    "add",
    "add_rms_norm",
    "all_gather",
    "all_reduce",
    "attention_sublayer",
    "bind",
    "clip",
    "count_expert_tokens",
    "decoder",
    "embedding",
    "feed_forward_sublayer",
    "grouped_matmul",
    "kv_plane_shape",
    "laid_out_for",
    "latent_attention",
    "latent_cache",
    "linear",
    "moe_experts",
    "moe_finalize_routing",
    "moe_gating",
    "moe_init_routing",
    "moe_route_scales",
    "norm_by_sums",
    "operations",
    "paged_attention",
    "quant_grouped_matmul",
    "quant_linear",
    "quant_matmul",
    "quant_moe_experts",
    "quantize",
    "quantize_static",
    "reshape_and_cache",
    "rms_norm",
    "rope",
    "rope_and_cache",
    "rope_and_latent_cache",
    "rope_tables",
    "router",
    "select_rows",
    "shared_expert_gate",
    "square_sums",
    "swiglu",
    "to_float",
    "top_logits",
]
