"""Declarations that are damaged at random: each is refused by name, or read."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from atb_models.errors import AtbError
from atb_models.models.quantized.read import read_scheme
from atb_models.models.weights.checkpoint import open_checkpoint
from tests.broken.damage import damaged_values
from tests.parity.test_formats import FORMATS

MAPS = ("model.layers.0.self_attn.q_proj", "model.layers.0.mlp.experts.0.down_proj")
RULES: dict[str, dict[str, Any]] = {
    "gptq": {"dynamic": {"+:lm_head": {"bits": 4}}, "modules_in_block_to_quantize": [["self_attn.q_proj"]]},
    "awq": {"modules_to_not_convert": ["mlp.gate"]},
}


@pytest.mark.parametrize("format", FORMATS)
def test_damaged_values(tmp_path: Path, format: str) -> None:
    declared, pack = FORMATS[format]
    tensors = {
        f"{name}.{part}": tensor.contiguous() for name in MAPS for part, tensor in pack(torch.randn(64, 128))[0].items()
    }
    save_file(tensors, tmp_path / "model.safetensors")
    whole = json.dumps({"quantization_config": declared | RULES.get(declared["quant_method"], {})})
    read_all(tmp_path, json.loads(whole))
    random, refused = Random(f"{format} 1"), 0
    for _ in range(100):
        try:
            config = json.loads(damaged_values(whole, random))
        except ValueError:  # no JSON came out of it: a circle, or too many digits
            continue
        try:
            read_all(tmp_path, config if isinstance(config, dict) else {})
        except AtbError as error:
            message = str(error)
            assert str(tmp_path) in message and "\n" not in message and len(message) < 1500
            refused += 1
    assert refused > 20


def read_all(folder: Path, config: dict[str, Any]) -> None:
    """Everything that a scheme can be asked for, and every tensor of its source."""
    scheme = read_scheme(folder, config)
    if scheme is None:
        return
    assert scheme.name and scheme.method
    with open_checkpoint(folder, quantized=True) as checkpoint:
        source = scheme.open(checkpoint)
        for name in source.names():
            scheme.has_bias(name)
            dtype = torch.float32 if scheme.storage(name) is None else torch.int8
            source.read_into(name, None, 0, 0, torch.empty(source.shape(name), dtype=dtype))
