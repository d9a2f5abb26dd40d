"""The registry of model families, by the model_type of config.json: each is one short file of differences."""

from __future__ import annotations

from atb_models.models.families import deepseek, qwen, xverse
from atb_models.models.family import Family

FAMILIES: dict[str, Family] = {"deepseek": deepseek.FAMILY, "qwen2_moe": qwen.FAMILY, "xverse": xverse.FAMILY}
