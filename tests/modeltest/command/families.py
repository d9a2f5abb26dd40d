"""What model_name may say: a model_type that the engine knows, or MindIE's name for one or several of them."""

from __future__ import annotations

from atb_models.models.families import FAMILIES

# MindIE has one name for all models of Qwen.
MINDIE = {
    "qwen": ("qwen2_moe", "qwen2", "qwen3", "qwen3_moe"),
    "deepseekv2": ("deepseek_v2",),
    "deepseekv3": ("deepseek_v3",),
}
MODEL_TYPES: dict[str, tuple[str, ...]] = {name: (name,) for name in FAMILIES} | MINDIE  # by model_name
