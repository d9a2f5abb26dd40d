"""Latent attention in the storages and on the ranks that other families have, against the plain implementation."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from atb_models import LLM, SamplingParams
from tests.kept_ranks import KeptRanks
from tests.models.formats.checkpoints import quantized_copy
from tests.models.formats.packing import Packed, float8
from tests.models.quantized.modelslim.writer import Form, every, write
from tests.parity.checks import check_plain, check_quantized_by_torch
from tests.parity.golden import FP32_TOLERANCE
from tests.parity.plain import plain_logits
from tests.parity.test_dimensions import check as check_sizes
from tests.parity.test_dimensions import skip_without
from tests.parity.test_int8_cache import check as check_int8_cache
from tests.parity.test_int8_cache import check_by_torch as check_int8_cache_by_torch
from tests.wide_latent import V2_LITE

CHECKPOINTS = ("deepseek_v2", "deepseek_v3")
FULL = pytest.mark.full
TOKENS = torch.randint(3, 500, (40,), generator=torch.Generator().manual_seed(1)).tolist()
FLOAT8 = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [24, 32]}


@pytest.mark.parametrize("quantize", ["w8a16", pytest.param("w4a16", marks=FULL)])
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_integer_weights(shared: Path, name: str, quantize: str) -> None:
    """Of all linear maps but the one that makes keys and values of latents."""
    by = check_plain if name == "deepseek_v2" else check_quantized_by_torch
    by(str(shared / "golden" / name), quantize)


@pytest.mark.parametrize("tp", [3, pytest.param(2, marks=FULL), pytest.param(8, marks=FULL)])
@pytest.mark.parametrize("quantize", ["w8a16", pytest.param("w4a16", marks=FULL)])
@pytest.mark.parametrize("name", ["deepseek_v3", pytest.param("deepseek_v2", marks=FULL)])
def test_integer_weights_on_ranks(shared: Path, kept_ranks: KeptRanks, name: str, quantize: str, tp: int) -> None:
    kept_ranks.run("tests.parity.checks:check_plain", tp, str(shared / "golden" / name), quantize)


@pytest.mark.parametrize("by", ["library", "torch"])
@pytest.mark.parametrize("name", ["deepseek_v2", pytest.param("deepseek_v3", marks=FULL)])
def test_an_int8_cache(shared: Path, name: str, by: str) -> None:
    """Latents and rotary keys each with a scale of their own."""
    (check_int8_cache if by == "library" else check_int8_cache_by_torch)(str(shared / "golden" / name))


@pytest.mark.parametrize("name", ["deepseek_v3", pytest.param("deepseek_v2", marks=FULL)])
def test_an_int8_cache_on_ranks(shared: Path, kept_ranks: KeptRanks, name: str) -> None:
    """It is the same on every rank."""
    kept_ranks.run("tests.parity.test_int8_cache:check", 3, str(shared / "golden" / name))


def logits_of(folder: Path) -> Tensor:
    with LLM(folder, dtype="fp32", device="cpu", block_size=16, max_prefill_tokens=17) as llm:
        return llm.prompt_logits(TOKENS)


def test_weights_of_8_bit_floats(shared: Path, tmp_path: Path) -> None:
    """As DeepSeek-V3 is published: every linear map in blocks, those of layers that are left out too."""
    golden = shared / "golden" / "deepseek_v3"
    pack = partial(float8, block=(24, 32))

    def named(name: str, weight: Tensor) -> Packed:
        return pack(weight)

    names = [name for name in load_file(golden / "model.safetensors") if name.endswith("_with_mqa.weight")]
    assert len(names) == 4
    floats = quantized_copy(golden, tmp_path, FLOAT8, pack, **dict.fromkeys(names, named))
    exact = plain_logits(json.loads((golden / "config.json").read_text()), floats, TOKENS)
    assert (logits_of(tmp_path) - exact).abs().max() <= FP32_TOLERANCE


def test_a_checkpoint_of_integers(shared: Path, tmp_path: Path) -> None:
    """What attention takes apart becomes floats while it is read, all else stays integers."""
    golden, is_map = shared / "golden" / "deepseek_v2", every("W8A16")
    form = Form("w8a16", lambda name: "W8A16" if name.endswith("_with_mqa.weight") else is_map(name))
    written = write(tmp_path, golden, form)
    exact = plain_logits(json.loads((golden / "config.json").read_text()), written.floats, TOKENS)
    assert (logits_of(tmp_path) - exact).abs().max() <= FP32_TOLERANCE
    with LLM(tmp_path, dtype="fp32", device="cpu") as llm:
        attention = llm._runner.model.layers[0].attn
        assert attention.kv_a.stored.layout.quantized and attention.kv_b.weight.dtype == torch.float32


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_the_same_bits_by_the_library(shared: Path, name: str, dtype: str) -> None:
    """In chunks, in company, after a prefix hit and with preemption."""
    prompts = [TOKENS * 4, TOKENS[:9], TOKENS[3:] * 2]
    engine = {"dtype": dtype, "device": "cpu", "block_size": 16, "max_seq_len": 256}
    params = SamplingParams(max_tokens=12, temperature=0.9, seed=5, ignore_eos=True)
    folder = shared / "golden" / name
    with LLM(folder, **engine, prefix_cache=False) as llm:
        whole = llm.prompt_logits(prompts[0])
        expected = [llm.generate([prompt], params)[0].token_ids for prompt in prompts]
        assert [out.token_ids for out in llm.generate(prompts, params)] == expected
    with LLM(folder, **engine, max_prefill_tokens=13) as llm:
        assert torch.equal(llm.prompt_logits(prompts[0]), whole)
        assert [out.token_ids for out in llm.generate(prompts * 2, params)] == expected * 2
        assert llm.metrics()["prefix_hit_tokens"] > 0
    with LLM(folder, **engine, kv_blocks=17, prefix_cache=False) as llm:
        assert [out.token_ids for out in llm.generate(prompts, params)] == expected
        assert llm.metrics()["preemptions"] > 0


@pytest.mark.parametrize(
    ("name", "condition", "dtype"),
    [("deepseek_v2", "chunks_of_16", "fp32"), pytest.param("deepseek_v3", "batched", "fp32", marks=FULL)],
)
def test_three_ranks(shared: Path, kept_ranks: KeptRanks, name: str, condition: str, dtype: str) -> None:
    """8 heads on three ranks: the last has two of its three."""
    kept_ranks.run("tests.parity.checks:run", 3, str(shared / "golden" / name), condition, dtype)


@FULL
def test_the_dimensions_of_v2_lite(tmp_path: Path, kept_ranks: KeptRanks) -> None:
    """Two whole layers, the first of which is dense."""
    skip_without(8 << 30)
    (tmp_path / "config.json").write_text(json.dumps(V2_LITE))
    check_sizes(kept_ranks, tmp_path, {"num_hidden_layers": 2, "initializer_range": 0.02}, (1, 3))


def test_few_experts_of_v2_lite(tmp_path: Path, kept_ranks: KeptRanks) -> None:
    fields = {"first_k_dense_replace": 0, "n_routed_experts": 8, "num_hidden_layers": 1, "vocab_size": 1002}
    (tmp_path / "config.json").write_text(json.dumps(V2_LITE))
    check_sizes(kept_ranks, tmp_path, fields | {"initializer_range": 0.02}, (1, 3))
