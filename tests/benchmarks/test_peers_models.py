"""benchmarks/peers.py: the files of the models, and what a machine can do at most of them."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from tests.benchmarks.fakes import TINY, TINY_DEEPSEEK


def written(folder: Path, kind: str) -> tuple[gguf.GGUFReader, dict[str, np.ndarray]]:
    """The GGUF file of the checkpoint in a folder, and its tensors."""
    from peers.gguf_file import write_gguf

    write_gguf(folder, folder / f"{kind}.gguf", kind)
    reader = gguf.GGUFReader(folder / f"{kind}.gguf")
    return reader, {tensor.name: gguf.dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors}


def test_linear_maps_alone_are_q8_0(benchmarks: None, tmp_path: Path) -> None:
    from peers.checkpoint import write_checkpoint

    write_checkpoint(tmp_path, TINY | {"num_hidden_layers": 1, "vocab_size": 320})
    tensors = {k: v for file in tmp_path.glob("*.safetensors") for k, v in load_file(file).items()}
    reader, stored = written(tmp_path, "Q8_0")
    kinds = {tensor.name.removeprefix("blk.0."): tensor.tensor_type.name for tensor in reader.tensors}
    maps = {f"attn_{name}.weight" for name in ("q", "k", "v", "output")}
    maps |= {f"ffn_{part}{of}.weight" for part in ("gate", "up", "down") for of in ("_exps", "_shexp")}
    assert {name for name, kind in kinds.items() if kind == "Q8_0"} == maps
    assert {name for name, kind in kinds.items() if kind == "BF16"} == {"token_embd.weight", "output.weight"}
    assert {"ffn_gate_inp.weight", "ffn_norm.weight", "attn_q.bias"} <= {n for n, k in kinds.items() if k == "F32"}
    # By the format's rule: 32 numbers and the largest of them / 127, as fp16.
    exact = tensors["model.layers.0.mlp.experts.2.up_proj.weight"].float().view(-1, 32)
    scale = (exact.abs().amax(-1, keepdim=True) / 127).half().float()
    found = torch.from_numpy(stored["blk.0.ffn_up_exps.weight"][2].copy()).view(-1, 32)
    assert ((found / scale).round() * scale - found).abs().max() < 1e-9
    assert ((found - exact).abs() <= 0.57 * scale).all(), "half a step, and 127 times what fp16 rounds"
    raw = next(tensor for tensor in reader.tensors if tensor.name == "blk.0.attn_q.weight")
    assert raw.n_bytes == 128 * 128 // 32 * 34


def test_deepseeks_file(benchmarks: None, tmp_path: Path) -> None:
    """A dense layer first; heads turned in pairs, so the halves of queries and keys lie in turns."""
    from peers.checkpoint import write_checkpoint

    write_checkpoint(tmp_path, TINY_DEEPSEEK | {"num_hidden_layers": 2, "vocab_size": 320})
    tensors = {k: v for file in tmp_path.glob("*.safetensors") for k, v in load_file(file).items()}
    reader, stored = written(tmp_path, "BF16")
    assert sum(values.size for values in stored.values()) == sum(tensor.numel() for tensor in tensors.values())

    def field(name: str) -> object:
        return reader.fields[f"deepseek.{name}"].contents()

    assert field("leading_dense_block_count") == 1 and field("expert_shared_count") == 2
    assert field("expert_count") == 8 and field("expert_used_count") == 3 and field("expert_weights_scale") == 1
    assert field("rope.dimension_count") == 32 and field("feed_forward_length") == 96
    assert "blk.0.ffn_gate.weight" in stored and "blk.0.ffn_gate_inp.weight" not in stored
    for ours, theirs in (
        ("model.layers.0.mlp.up_proj.weight", "blk.0.ffn_up.weight"),
        ("model.layers.1.mlp.shared_experts.down_proj.weight", "blk.1.ffn_down_shexp.weight"),
        ("model.layers.1.self_attn.v_proj.weight", "blk.1.attn_v.weight"),
    ):
        assert torch.equal(torch.from_numpy(stored[theirs].copy()), tensors[ours].float())
    halves = tensors["model.layers.1.self_attn.k_proj.weight"].float().view(2, 2, 16, 128)
    pairs = torch.from_numpy(stored["blk.1.attn_k.weight"].copy()).view(2, 16, 2, 128)
    assert torch.equal(pairs[:, :, 0], halves[:, 0]) and torch.equal(pairs[:, :, 1], halves[:, 1])


def test_the_files_hold_the_same_model(benchmarks: None, tmp_path: Path) -> None:
    from peers.checkpoint import write_checkpoint

    write_checkpoint(tmp_path, TINY | {"num_hidden_layers": 2, "vocab_size": 320})
    tensors = {k: v for file in tmp_path.glob("*.safetensors") for k, v in load_file(file).items()}
    for kind in "F16", "BF16":
        reader, stored = written(tmp_path, kind)
        assert sum(values.size for values in stored.values()) == sum(tensor.numel() for tensor in tensors.values())
        for ours, theirs in (
            ("model.layers.1.mlp.experts.5.down_proj.weight", stored["blk.1.ffn_down_exps.weight"][5]),
            ("model.layers.0.self_attn.k_proj.bias", stored["blk.0.attn_k.bias"]),
            ("lm_head.weight", stored["output.weight"]),
        ):
            torch.testing.assert_close(torch.from_numpy(np.array(theirs)), tensors[ours].float(), rtol=0, atol=6e-8)
        assert reader.fields["qwen2moe.expert_used_count"].parts[-1][0] == TINY["num_experts_per_tok"]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.encode("a qz é") == [97, 32, 256, 32, 0xC3, 0xA9] and len(tokenizer) == 320
    assert tokenizer.decode([97, 32, 256, 32, 0xC3, 0xA9]) == "a qz é"


def test_the_limits_count_the_models_parameters(benchmarks: None) -> None:
    from peers.cases import CONTEXT, NEW, Case, Work
    from peers.shapes import QWEN_MOE

    work = Work(QWEN_MOE | {"num_hidden_layers": 1})
    mlp = 3 * 2048 * 1408
    # attention, the shared expert of four widths; its gate, router
    maps, floats = 4 * 2048 * 2048 + 4 * mlp, 2048 + 60 * 2048
    every = maps + floats
    head = 2048 * 151_936
    cache = 2 * 2 * 2048 * (CONTEXT + NEW / 2)
    read = 2 * (every + 4 * mlp + head) + cache
    assert work.limit(Case(1, CONTEXT, NEW), 2.0, read=10.0 * read, flops=1.0) == pytest.approx(10)
    touched = 60 * (1 - (56 / 60) ** 8)
    read = 2 * (every + touched * mlp + head) + 8 * cache
    assert work.limit(Case(8, CONTEXT, NEW), 2.0, read=read, flops=1.0) == pytest.approx(8)
    read = 1.5 * (maps + 4 * mlp) + 2 * (floats + head) + cache
    assert work.limit(Case(1, CONTEXT, NEW), 1.5, read=10.0 * read, flops=1.0) == pytest.approx(10)
    flops = 2 * 256 * (every + 4 * mlp) + 4 * 2048 * 256 * 257 / 2 + 2 * head
    assert work.limit(Case(1, 256, 0), 2.0, read=1.0, flops=flops) == pytest.approx(256)


def test_the_limits_count_the_dense_layers_of_deepseek(benchmarks: None) -> None:
    from peers.cases import CONTEXT, NEW, Case, Work
    from peers.shapes import DEEPSEEK_MOE

    work = Work(DEEPSEEK_MOE | {"num_hidden_layers": 3})
    mlp = 3 * 2048 * 1408
    # attention of three layers, a dense one, two shared experts and a router in two
    every = 3 * 4 * 2048 * 2048 + 3 * 2048 * 10944 + 2 * (2 * mlp + 64 * 2048)
    read = 2 * (every + 2 * 6 * mlp + 2048 * 102_400) + 3 * 2 * 2 * 2048 * (CONTEXT + NEW / 2)
    assert work.limit(Case(1, CONTEXT, NEW), 2.0, read=10.0 * read, flops=1.0) == pytest.approx(10)


def test_shares_and_ratios_are_of_one_round(benchmarks: None) -> None:
    from peers.cases import Case, Work
    from peers.dtypes import DTYPES
    from peers.measure import OURS, Measured, Round
    from peers.shapes import QWEN_MOE

    case, decode, work = Case(1, 256, 0), Case(1, 64, 32), Work(QWEN_MOE)
    one = work.prefill_flops(case) / 256  # FLOPs a token
    figures = ((100.0, 50.0, 200.0), (30.0, 10.0, 40.0), (60.0, 60.0, 240.0))  # ours, the peer's, the limit
    stored = {OURS: DTYPES["w8a16"].python, "peer": DTYPES["w8a16"].gguf}
    rounds = [
        Round(
            10.0 * ours,
            {torch.bfloat16: limit * one, torch.int8: 2 * limit * one},
            {(OURS, case): ours, ("peer", case): peer, (OURS, decode): 3.0, ("peer", decode): 3.0},
        )
        for ours, peer, limit in figures
    ]
    measured = Measured("w8a16", [OURS, "peer"], [case, decode], stored, rounds=rounds)
    assert measured.products == [torch.bfloat16, torch.int8]
    assert measured.limit(work, case) == pytest.approx(200) and measured.share("peer", decode, work) == pytest.approx(
        work.decode_bytes(decode, 34 / 32) / work.decode_bytes(decode, 1.0) * measured.share(OURS, decode, work)
    )
    assert measured.rate(OURS, case) == 60 and measured.rate("peer", case) == 50
    assert measured.ratio("peer", case) == 2
    assert measured.share(OURS, case, work) == pytest.approx(0.5)
    assert measured.share("peer", case, work) == pytest.approx(0.125), "of the int8 peak, twice as much"
