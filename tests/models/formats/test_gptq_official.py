"""The tensors of Qwen1.5-MoE-A2.7B-Chat-GPTQ-Int4 by name and kind, 22,539 of them, in narrower matrices."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from atb_models.layers.storage import Storage
from tests.models.quantized.reading import floats_of, opened, scheme_of

LAYERS, EXPERTS, HIDDEN, WIDTH, SHARED = 24, 60, 32, 64, 96
# As the checkpoint declares itself.
DECLARED = {
    "batch_size": 1, "bits": 4, "block_name_to_quantize": None, "cache_block_outputs": True, "damp_percent": 0.01,
    "dataset": None, "desc_act": False, "exllama_config": {"version": 1}, "group_size": 128, "max_input_length": None,
    "model_seqlen": None, "module_name_preceding_first_block": None, "modules_in_block_to_quantize": None,
    "pad_token_id": None, "quant_method": "gptq", "sym": True, "tokenizer": None, "true_sequential": True,
    "use_cuda_fp16": False, "use_exllama": True,
}  # fmt: skip


def linear_maps() -> dict[str, tuple[int, int]]:
    """Outputs and inputs of those that are packed."""
    maps = {}
    for i in range(LAYERS):
        layer = f"model.layers.{i}"
        maps |= {f"{layer}.self_attn.{part}_proj": (HIDDEN, HIDDEN) for part in "qkvo"}
        experts = {f"experts.{expert}": WIDTH for expert in range(EXPERTS)} | {"shared_expert": SHARED}
        for name, width in experts.items():
            stem = f"{layer}.mlp.{name}"
            maps |= {f"{stem}.gate_proj": (width, HIDDEN), f"{stem}.up_proj": (width, HIDDEN)}
            maps[f"{stem}.down_proj"] = HIDDEN, width
    return maps


def packed(outputs: int, inputs: int, *, biased: bool) -> dict[str, Tensor]:
    return {
        "qweight": torch.full((inputs // 8, outputs), 0x76543210, dtype=torch.int32),
        "qzeros": torch.full((1, outputs // 8), 0x77777777, dtype=torch.int32),
        "scales": torch.full((1, outputs), 0.5, dtype=torch.float16),
        "g_idx": torch.zeros(inputs, dtype=torch.int32),
        "bias": torch.full((outputs,), float(biased), dtype=torch.float16),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("official")
    tensors = {f"{name}.weight": torch.ones(8, HIDDEN).half() for name in ("model.embed_tokens", "lm_head")}
    tensors["model.norm.weight"] = torch.ones(HIDDEN).half()
    for i in range(LAYERS):
        layer = f"model.layers.{i}"
        tensors |= {
            f"{layer}.{name}_layernorm.weight": torch.ones(HIDDEN).half() for name in ("input", "post_attention")
        }
        tensors[f"{layer}.mlp.gate.weight"] = torch.ones(EXPERTS, HIDDEN).half()
        tensors[f"{layer}.mlp.shared_expert_gate.weight"] = torch.ones(1, HIDDEN).half()
    for name, (outputs, inputs) in linear_maps().items():
        parts = packed(outputs, inputs, biased=name.endswith(("q_proj", "k_proj", "v_proj")))
        tensors |= {f"{name}.{part}": tensor for part, tensor in parts.items()}
    assert len(tensors) == 22_539
    save_file(tensors, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps({"quantization_config": DECLARED}))
    return path


def test_what_is_packed_and_what_is_spare(folder: Path) -> None:
    maps = linear_maps()
    with opened(folder) as (scheme, source):
        assert {name for name in source.names() if scheme.storage(name)} == {f"{name}.weight" for name in maps}
        biased = {name for name in maps if scheme.has_bias(f"{name}.weight")}
        assert biased == {f"model.layers.{i}.self_attn.{part}_proj" for i in range(LAYERS) for part in "qkv"}
        assert source.spare() == {f"{name}.bias" for name in maps.keys() - biased}
        plain = 3 + 4 * LAYERS
        assert len(source.names()) == 3 * len(maps) + plain, "values, scales and a bias of each"
        down = "model.layers.23.mlp.experts.59.down_proj.weight"
        assert scheme.storage(down) == Storage(4, 128)
        row = [0.5 * (number - 8) for number in range(8)] * 8
        assert floats_of(scheme, source, down).tolist() == [row] * HIDDEN


def test_opening_is_fast(folder: Path) -> None:
    """In CPU time: some 1.5 s on the slowest machine so far; reading one weight after the other takes far longer."""
    began = time.process_time()
    scheme = scheme_of(folder)
    assert scheme.storage("model.layers.0.self_attn.q_proj.weight") == Storage(4, 128)
    with opened(folder):
        pass
    assert time.process_time() - began < 8
