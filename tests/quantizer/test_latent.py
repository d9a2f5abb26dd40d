"""Checkpoints with latent attention in fewer bits: the same as quantised while they are loaded, and static ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from atb_models import LLM
from tests.quantizer.written import quantize, tensors_of

TOKENS = torch.randint(3, 500, (30,), generator=torch.Generator().manual_seed(1)).tolist()


def logits(folder: Path, **arguments: str) -> torch.Tensor:
    with LLM(folder, dtype="fp32", device="cpu", **arguments) as llm:
        return llm.prompt_logits(TOKENS)


@pytest.mark.parametrize("form", [(), ("--format", "compressed-tensors")])
def test_int8_weights(shared: Path, tmp_path: Path, form: tuple[str, ...]) -> None:
    """The map that attention takes apart stays a float; layers that are left out are not written."""
    golden = shared / "golden" / "deepseek_v3"
    assert quantize(golden, tmp_path / "out", "--to", "w8a16", *form) == 0
    written = tensors_of(tmp_path / "out")
    attention = "model.layers.1.self_attn"
    assert written[f"{attention}.kv_b_proj.weight"].dtype == torch.bfloat16
    for name in ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "o_proj"):
        stored = {"weight", "weight_packed"} & {key.removeprefix(f"{attention}.{name}.") for key in written}
        assert written[f"{attention}.{name}.{stored.pop()}"].dtype in (torch.int8, torch.int32)
    assert not any(name.startswith("model.layers.3.") for name in written)
    assert torch.equal(logits(tmp_path / "out"), logits(golden, quantize="w8a16"))


def test_static_activations(shared: Path, tmp_path: Path) -> None:
    """The ranges of all linear maps of attention are seen, and the rows of their biases of integers are reordered."""
    golden = shared / "golden" / "deepseek_v2"
    assert quantize(golden, tmp_path / "out", "--to", "w8a8") == 0
    written = tensors_of(tmp_path / "out")
    for name in ("q_proj", "kv_a_proj_with_mqa", "o_proj"):
        assert written[f"model.layers.1.self_attn.{name}.quant_bias"].dtype == torch.int32
    exact, by_token, static = logits(golden), logits(golden, quantize="w8a8_dynamic"), logits(tmp_path / "out")
    assert 0 < (static - exact).abs().mean() < 2 * (by_token - exact).abs().mean()
