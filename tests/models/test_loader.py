"""Filling the decoder's parameters: every rank's slices, nothing left over, nothing unfilled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from atb_models.errors import CheckpointError
from atb_models.layers.parameter import fillings, whole
from atb_models.models.config_reader import load_model_config
from atb_models.models.decoder import Decoder, build_model
from atb_models.models.weights.loader import load_weights
from atb_models.models.weights.opening import open_weights
from atb_models.models.weights.weight_map import checkpoint_tensors
from tests.records import build_of, part_of

VARIATIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "biases and grouped heads": {"attention_bias": True, "num_key_value_heads": 2},
    "no shared experts": {"n_shared_experts": None},
    "all dense": {"n_routed_experts": None},
    "every second layer": {"moe_layer_freq": 2, "first_k_dense_replace": 0},
    "tied": {"tie_word_embeddings": True},
    "widths that divide by no tp": {"moe_intermediate_size": 33, "intermediate_size": 97, "vocab_size": 251},
}


def loaded(
    folder: Path,
    rank: int = 0,
    tp: int = 1,
    dtype: torch.dtype = torch.bfloat16,
    overrides: dict[str, Any] | None = None,
) -> Decoder:
    config = load_model_config(folder, overrides)
    model = build_model(config, build_of(dtype, rank, tp))
    source = open_weights(folder, "auto", model, config)
    load_weights(model, config, source)
    source.close()
    return model


def expected_parts(tensors: dict[str, Tensor], layer: int, expert: int) -> dict[tuple[str, str], Tensor]:
    """Checkpoint tensors by our parameter and role, written out for one layer and one expert."""
    theirs, ours = f"model.layers.{layer}", f"layers.{layer}"
    table = {(f"{ours}.attn.qkv.weight", role): f"self_attn.{role}_proj.weight" for role in "qkv"}
    table |= {(f"{ours}.attn.qkv.bias", role): f"self_attn.{role}_proj.bias" for role in "qkv"}
    table |= {
        (f"{ours}.attn.o.weight", ""): "self_attn.o_proj.weight",
        (f"{ours}.attn.o.bias", ""): "self_attn.o_proj.bias",
        (f"{ours}.input_norm.weight", ""): "input_layernorm.weight",
        (f"{ours}.post_norm.weight", ""): "post_attention_layernorm.weight",
        (f"{ours}.mlp.gate_up.weight", "gate"): "mlp.gate_proj.weight",
        (f"{ours}.mlp.gate_up.weight", "up"): "mlp.up_proj.weight",
        (f"{ours}.mlp.down.weight", ""): "mlp.down_proj.weight",
        (f"{ours}.mlp.router.weight", ""): "mlp.gate.weight",
        (f"{ours}.mlp.experts.gate_up", f"gate.{expert}"): f"mlp.experts.{expert}.gate_proj.weight",
        (f"{ours}.mlp.experts.gate_up", f"up.{expert}"): f"mlp.experts.{expert}.up_proj.weight",
        (f"{ours}.mlp.experts.down", f"{expert}"): f"mlp.experts.{expert}.down_proj.weight",
        (f"{ours}.mlp.shared.gate_up.weight", "gate"): "mlp.shared_experts.gate_proj.weight",
        (f"{ours}.mlp.shared.gate_up.weight", "up"): "mlp.shared_experts.up_proj.weight",
        (f"{ours}.mlp.shared.down.weight", ""): "mlp.shared_experts.down_proj.weight",
    }
    known = {key: tensors.get(f"{theirs}.{name}") for key, name in table.items()}
    return {key: tensor for key, tensor in known.items() if tensor is not None}


@pytest.mark.parametrize("variation", VARIATIONS)
@pytest.mark.parametrize("tp", [1, 3, 4])
def test_every_rank_has_its_slices(tmp_path: Path, variation: str, tp: int) -> None:
    tensors = tiny.write_checkpoint(tmp_path, **VARIATIONS[variation])
    for rank in range(tp):
        model = loaded(tmp_path, rank, tp)
        for layer, expert in ((0, 0), (2, 7)):
            for (name, role), tensor in expected_parts(tensors, layer, expert).items():
                part, values = fillings(model)[name].parts[role], part_of(model, name, role)
                slice_ = tensor if part.dim is None else tensor.narrow(part.dim, part.start, part.stop - part.start)
                assert torch.equal(values, slice_.to(values.dtype)), (name, role)
        assert torch.equal(model.embed.weight[: len(tensors["model.embed_tokens.weight"])],
                           tensors["model.embed_tokens.weight"])  # fmt: skip


@pytest.mark.parametrize("tp", [2, 3, 7, 8])
def test_slices_of_all_ranks_make_up_the_whole(tmp_path: Path, tp: int) -> None:
    tensors = tiny.write_checkpoint(tmp_path, moe_intermediate_size=36)
    ranks = [loaded(tmp_path, rank, tp) for rank in range(tp)]
    for name, role, dim, theirs in (
        ("lm_head.weight", "", 0, "lm_head.weight"),
        ("layers.1.attn.o.weight", "", 1, "model.layers.1.self_attn.o_proj.weight"),
        ("layers.1.attn.qkv.weight", "k", 0, "model.layers.1.self_attn.k_proj.weight"),
        ("layers.1.mlp.experts.gate_up", "up.5", 0, "model.layers.1.mlp.experts.5.up_proj.weight"),
        ("layers.1.mlp.experts.down", "5", 1, "model.layers.1.mlp.experts.5.down_proj.weight"),
    ):
        whole_tensor = torch.cat([part_of(rank, name, role) for rank in ranks], dim)
        assert torch.equal(whole_tensor, tensors[theirs])


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("run", [torch.float16, torch.bfloat16, torch.float32])
def test_any_dtype_on_disk(tmp_path: Path, stored: torch.dtype, run: torch.dtype) -> None:
    tensors = tiny.write_checkpoint(tmp_path, dtype=stored)
    model = loaded(tmp_path, dtype=run)
    assert torch.equal(model.norm.weight, tensors["model.norm.weight"].to(run))
    router = model.get_parameter("layers.1.mlp.router.weight")
    assert torch.equal(router, tensors["model.layers.1.mlp.gate.weight"].float())


@pytest.mark.parametrize("layout", ["sharded", "bin", "bin-sharded"])
def test_layouts_give_the_same_model(tmp_path: Path, layout: str) -> None:
    tiny.write_checkpoint(tmp_path / "one")
    tiny.write_checkpoint(tmp_path / "other", layout=layout)
    one, other = (dict(loaded(tmp_path / name, 1, 2).named_parameters()) for name in ("one", "other"))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("name", ["deepseek-moe-16b-base", "qwen1.5-moe-a2.7b-chat"])
def test_names_are_those_of_the_published_checkpoint(name: str, shared: Path) -> None:
    folder = shared / "headers" / name
    published = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    names = [weight.name for weight in checkpoint_tensors(load_model_config(folder))]
    assert len(names) == len(set(names)) and set(names) == set(published)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_family_is_filled_whole_on_every_rank(tmp_path: Path, family: str) -> None:
    tensors = tiny.write_checkpoint(tmp_path, family=family)
    one, ranks = loaded(tmp_path), [loaded(tmp_path, rank, 4) for rank in range(4)]
    for name in ("layers.1.mlp.router.weight", *(["layers.1.mlp.shared_gate.weight"] if family == "qwen" else [])):
        assert all(torch.equal(rank.get_parameter(name), one.get_parameter(name)) for rank in ranks)
    assert sum(p.numel() for p in one.parameters()) == sum(tensor.numel() for tensor in tensors.values())


def test_float32_router_keeps_its_bits(tmp_path: Path) -> None:
    tensors = tiny.write_checkpoint(tmp_path, family="xverse")
    stored = tensors["model.layers.1.mlp.router.weight"]
    router = loaded(tmp_path, dtype=torch.float16).get_parameter("layers.1.mlp.router.weight")
    assert stored.dtype == router.dtype == torch.float32 and torch.equal(router, stored)
    assert not torch.equal(stored, stored.bfloat16().float())


def rewrite(folder: Path, **changes: Tensor | None) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    for name, value in changes.items():
        tensors.pop(name.replace("__", "."), None)
        if value is not None:
            tensors[name.replace("__", ".")] = value
    save_file(tensors, file)


def test_missing_tensor_is_named(tmp_path: Path) -> None:
    tiny.write_checkpoint(tmp_path)
    rewrite(tmp_path, model__layers__1__mlp__gate__weight=None, model__norm__weight=None)
    with pytest.raises(CheckpointError, match=r"has no tensor model\.layers\.1\.mlp\.gate\.weight, .*\(2 of \d+ ten"):
        loaded(tmp_path)


def test_unexpected_tensor_is_named_with_its_file(tmp_path: Path) -> None:
    tiny.write_checkpoint(tmp_path)
    rewrite(tmp_path, model__layers__1__mlp__gate__bias=torch.zeros(8))
    with pytest.raises(CheckpointError, match=r"model\.safetensors: tensor model\.layers\.1\.mlp\.gate\.bias is unex"):
        loaded(tmp_path)


def test_wrong_shape_is_named_with_both_shapes(tmp_path: Path) -> None:
    tiny.write_checkpoint(tmp_path)
    rewrite(tmp_path, model__norm__weight=torch.zeros(63))
    with pytest.raises(CheckpointError) as failure:
        loaded(tmp_path)
    message = "model.safetensors: tensor model.norm.weight has shape (63,), but config.json makes it (64,)"
    assert message in str(failure.value)


def test_harmless_leftovers(tmp_path: Path) -> None:
    tensors = tiny.write_checkpoint(tmp_path, tie_word_embeddings=True)
    wanted = loaded(tmp_path).state_dict()
    rewrite(
        tmp_path,
        lm_head__weight=tensors["model.embed_tokens.weight"],
        model__layers__0__self_attn__rotary_emb__inv_freq=torch.ones(4),
        model__layers__1__self_attn__k_proj__kv_cache_scale=torch.ones(64),
        model__layers__1__self_attn__v_proj__kv_cache_offset=torch.ones(64),
    )
    found = loaded(tmp_path).state_dict()
    assert found.keys() == wanted.keys() and all(found[name].equal(wanted[name]) for name in wanted)


def test_layers_are_left_over_only_when_an_override_cut_them_off(tmp_path: Path) -> None:
    tiny.write_checkpoint(tmp_path)
    assert len(loaded(tmp_path, overrides={"num_hidden_layers": 2}).layers) == 2
    tiny.write_checkpoint(tmp_path / "deep", num_hidden_layers=4)
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "deep" / "model.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match=r"tensor model\.layers\.3\.input_layernorm\.weight is unexpected"):
        loaded(tmp_path)


def test_more_layers_than_there_are(tmp_path: Path) -> None:
    tiny.write_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match=r"has no tensor model\.layers\.3\.input_layernorm\.weight"):
        loaded(tmp_path, overrides={"num_hidden_layers": 5})


def test_nothing_is_written_when_the_check_fails(tmp_path: Path) -> None:
    tiny.write_checkpoint(tmp_path)
    config = load_model_config(tmp_path)
    model = build_model(config, build_of(torch.float32))
    for parameter in model.parameters():
        parameter.fill_(7)
    rewrite(tmp_path, lm_head__weight=torch.zeros(1))
    with pytest.raises(CheckpointError, match=r"lm_head\.weight has shape \(1,\)"):
        load_weights(model, config, open_weights(tmp_path, "auto", model, config))
    assert all((parameter == 7).all() for parameter in model.parameters())


def test_parameter_that_nothing_fills_and_weight_without_a_parameter(tmp_path: Path) -> None:
    tiny.write_checkpoint(tmp_path)
    config = load_model_config(tmp_path)
    build = build_of(torch.float32)
    model = build_model(config, build)
    source = open_weights(tmp_path, "auto", model, config)
    whole(model, "extra", build.parameter(2))
    with pytest.raises(AssertionError, match=r"nothing fills \[\('extra', ''\)\]"):
        load_weights(model, config, source)
    model = build_model(config, build)
    model.register_parameter("stray", build.parameter(2))
    with pytest.raises(AssertionError, match=r"nothing fills \['stray'\]"):
        load_weights(model, config, source)
    model = build_model(config, build)
    model.layers[1].mlp = nn.Identity()
    with pytest.raises(AssertionError, match=r"model\.layers\.1\.mlp\.gate\.weight: no part"):
        load_weights(model, config, source)


def test_progress_bar(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.write_checkpoint(tmp_path)
    config = load_model_config(tmp_path)
    model = build_model(config, build_of(torch.float32))
    source = open_weights(tmp_path, "auto", model, config)
    load_weights(model, config, source, progress=False)
    assert capsys.readouterr() == ("", "")
    load_weights(model, config, source, progress=True)
    out, err = capsys.readouterr()
    assert out == "" and "loading weights: 100%" in err
