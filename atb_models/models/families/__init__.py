"""The registry of model families, by the model_type of config.json: each is one short file of differences."""

from __future__ import annotations

from atb_models.models.families import (
    deepseek,
    deepseek_v2,
    deepseek_v3,
    llama,
    mixtral,
    olmoe,
    qwen,
    qwen2,
    qwen3,
    xverse,
)
from atb_models.models.family import Family

FAMILIES: dict[str, Family] = {
    "deepseek": deepseek.FAMILY,
    "deepseek_v2": deepseek_v2.FAMILY,
    "deepseek_v3": deepseek_v3.FAMILY,
    "qwen2_moe": qwen.FAMILY,
    "xverse": xverse.FAMILY,
    "llama": llama.FAMILY,
    "mistral": llama.MISTRAL_FAMILY,
    "qwen2": qwen2.FAMILY,
    "qwen3": qwen3.FAMILY,
    "qwen3_moe": qwen3.MOE_FAMILY,
    "mixtral": mixtral.FAMILY,
    "olmoe": olmoe.FAMILY,
}
