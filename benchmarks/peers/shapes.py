"""The models whose shapes are measured, by the fields of their config.json."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# https://huggingface.co/Qwen/Qwen1.5-MoE-A2.7B, config.json; layers and vocabulary are set by flags
QWEN_MOE: dict[str, Any] = {
    "architectures": ["Qwen2MoeForCausalLM"],
    "attention_dropout": 0.0,
    "decoder_sparse_step": 1,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 5632,
    "max_position_embeddings": 8192,
    "max_window_layers": 21,
    "mlp_only_layers": [],
    "model_type": "qwen2_moe",
    "moe_intermediate_size": 1408,
    "norm_topk_prob": False,
    "num_attention_heads": 16,
    "num_experts": 60,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 24,
    "num_key_value_heads": 16,
    "output_router_logits": False,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "router_aux_loss_coef": 0.001,
    "shared_expert_intermediate_size": 5632,
    "sliding_window": 32768,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
# https://huggingface.co/deepseek-ai/deepseek-moe-16b-base, config.json
DEEPSEEK_MOE: dict[str, Any] = {
    "architectures": ["DeepseekForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "first_k_dense_replace": 1,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 10944,
    "max_position_embeddings": 4096,
    "model_type": "deepseek",
    "moe_intermediate_size": 1408,
    "moe_layer_freq": 1,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "norm_topk_prob": False,
    "num_attention_heads": 16,
    "num_experts_per_tok": 6,
    "num_hidden_layers": 28,
    "num_key_value_heads": 16,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 10000,
    "scoring_func": "softmax",
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 102400,
}
# By the names of --shape: the published model, and its config.json.
SHAPES = {"qwen": ("Qwen1.5-MoE-A2.7B", QWEN_MOE), "deepseek": ("DeepSeek-MoE-16B", DEEPSEEK_MOE)}


@dataclass(frozen=True)
class Dimensions:
    """What both kinds of config.json say. shared: width of all shared experts together."""

    hidden: int
    vocab: int
    layers: int
    dense_layers: int  # the first ones, whose feed-forward is one MLP of `dense_width`
    dense_width: int
    heads: int
    kv_heads: int
    experts: int
    top_k: int
    width: int
    shared: int
    is_deepseek: bool  # else Qwen: biases of queries, keys and values, and a gate of the shared expert

    @classmethod
    def of(cls, config: dict[str, Any]) -> Dimensions:
        """Of a config.json whose model_type is one of SHAPES."""
        is_deepseek = config["model_type"] == "deepseek"
        shared = config["n_shared_experts"] * config["moe_intermediate_size"] if is_deepseek else None
        return cls(
            hidden=config["hidden_size"],
            vocab=config["vocab_size"],
            layers=config["num_hidden_layers"],
            dense_layers=min(config["first_k_dense_replace"], config["num_hidden_layers"]) if is_deepseek else 0,
            dense_width=config["intermediate_size"],
            heads=config["num_attention_heads"],
            kv_heads=config["num_key_value_heads"],
            experts=config["n_routed_experts" if is_deepseek else "num_experts"],
            top_k=config["num_experts_per_tok"],
            width=config["moe_intermediate_size"],
            shared=config["shared_expert_intermediate_size"] if shared is None else shared,
            is_deepseek=is_deepseek,
        )

    @property
    def head_size(self) -> int:
        return self.hidden // self.heads

    @property
    def kv_width(self) -> int:
        return self.kv_heads * self.head_size

    @property
    def shared_name(self) -> str:
        """Of the shared experts in the checkpoint's tensor names."""
        return "shared_experts" if self.is_deepseek else "shared_expert"
