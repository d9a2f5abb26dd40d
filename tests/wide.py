"""A config.json with the published dimensions of DeepSeek-MoE-16B, for tests that need no weights."""

from __future__ import annotations

import json
from pathlib import Path

from tests.tiny import DEEPSEEK

WIDE = DEEPSEEK | {
    "hidden_size": 2048,
    "intermediate_size": 10944,
    "max_position_embeddings": 4096,
    "moe_intermediate_size": 1408,
    "n_routed_experts": 64,
    "num_attention_heads": 16,
    "num_experts_per_tok": 6,
    "num_hidden_layers": 28,
    "num_key_value_heads": 16,
    "vocab_size": 102400,
}


def write_config(folder: Path, **fields: int) -> Path:
    """Write config.json, with `fields` in place of the published ones, to `folder`, which is returned."""
    (folder / "config.json").write_text(json.dumps(WIDE | fields))
    return folder
