"""What a sublayer takes, and what it keeps from call to call."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from atb_models import ops
from atb_models.ops.native.library import Library
from atb_models.ops.step import StepInput
from tests.native.sublayers.layers import BLOCKS, MODELS, SIZE, Layer, build_layers, check_layer, random_step
from tests.records import build_of


def test_what_does_not_go_together_is_refused(moe: Layer) -> None:
    step = random_step([3, 1], [30, 9])
    x, residual = torch.randn(2, 4, moe.hidden).half()

    def refused(match: str, step: StepInput, x: Tensor = x, residual: Tensor = residual) -> None:
        before = {name: plane.clone() for name, plane in moe.cache.items()}
        with pytest.raises(ValueError, match=match):
            angle = torch.zeros(len(step.slots_T), moe.half)
            given = (moe.layer._attention_sublayer, angle, angle, moe.cache, step)
            ops.attention_sublayer(x, residual, *given)
        assert all(torch.equal(moe.cache[name], plane) for name, plane in before.items())

    rows = "AttentionSublayer: rows .* do not go with"
    for wrong in (x.float(), x[:, :-1], x[:3], x.to("meta")):
        refused(rows, step, x=wrong)
    refused("AttentionSublayer: the last 1 of .* do not lie together", step, x=x.t().contiguous().t())
    refused("4 rows and heads of 8 beside tables", replace(step, slots_T=step.slots_T[:3]))
    refused("lists of", replace(step, kv_lens_B=step.kv_lens_B.long()))
    refused("do not go together", replace(step, query_starts_B=step.query_starts_B[:2]))
    refused("a slot that the cache does not have", replace(step, slots_T=step.slots_T + BLOCKS * SIZE))
    refused("a block that the cache does not have", replace(step, block_table_BC=step.block_table_BC + BLOCKS))
    refused("lengths that do not go together", replace(step, kv_lens_B=step.kv_lens_B * 100))
    with pytest.raises(ValueError, match="FeedForwardSublayer: rows .* do not go with"):
        moe.feed_forward(ops.feed_forward_sublayer, x.float(), residual)
    with pytest.raises(ValueError, match="experts: x"):
        ops.feed_forward_sublayer(x, residual, moe.layer._feed_forward_sublayer, torch.zeros(3, dtype=torch.int64))


def test_weights_that_do_not_go_together_are_refused(moe: Layer) -> None:
    attention, feed_forward = moe.layer._attention_sublayer, moe.layer._feed_forward_sublayer
    assert attention is not None and feed_forward.routed is not None
    x, residual = torch.randn(2, 1, moe.hidden).half()
    angle, step = torch.zeros(1, moe.half), random_step([1], [9])
    for change, match in (
        ({"heads": 4}, "4 heads of 8, 2 KV heads, weights .* do not go together"),
        ({"qkv_bias_O": torch.zeros(5)}, "Linear: .* do not go"),
        ({"q_norm": replace(attention.norm, weight_H=torch.zeros(9).half())}, r"the norm of queries is \(9,\) of"),
        ({"k_norm": replace(attention.norm, weight_H=torch.zeros(8))}, r"the norm of keys is \(8,\) of torch.float32"),
        ({"norm": replace(attention.norm, weight_H=torch.zeros(9).half())}, r"the norm is \(9,\) of torch.float16"),
    ):
        given = (replace(attention, **change), angle, angle, moe.cache, step)
        with pytest.raises(ValueError, match=match):
            ops.attention_sublayer(x, residual, *given)
    routed = feed_forward.routed
    for changed, match in (
        (replace(routed, gating=replace(routed.gating, top_k=10)), "MoeGating: the 10 best of 9 experts"),
        (replace(routed, shared_gate_1H=torch.zeros(1, 3).half()), "the shared experts' gate is"),
        (replace(routed, router_bias_E=torch.zeros(9).half()), "the router's bias is"),
        (replace(routed, router=routed.gate_up), "do not go together"),
    ):
        with pytest.raises(ValueError, match=match):
            ops.feed_forward_sublayer(x, residual, replace(feed_forward, routed=changed))


@torch.inference_mode()
def test_weights_and_caches_that_move_are_found(moe: Layer) -> None:
    """What is kept from call to call is what the tensors were when it was made."""
    step = random_step([1, 2], [9, 30])
    x, residual = torch.randn(2, 3, moe.hidden).half()
    for parameter in (moe.layer.attn.qkv.weight, moe.layer.mlp.experts.down, moe.layer.post_norm.weight):
        check_layer(moe, step, first=False)
        before = moe.attend(ops.attention_sublayer, step, x, residual)[0]
        fed = moe.feed_forward(ops.feed_forward_sublayer, x, residual)[0]
        assert isinstance(parameter, torch.nn.Parameter)
        parameter.data = parameter.data / 2
        after = moe.attend(ops.attention_sublayer, step, x, residual)[0]
        assert torch.equal(before, after) == (parameter is not moe.layer.attn.qkv.weight)
        again = moe.feed_forward(ops.feed_forward_sublayer, x, residual)[0]
        assert torch.equal(fed, again) == (parameter is moe.layer.attn.qkv.weight)
    check_layer(moe, step, first=False)


@torch.inference_mode()
def test_norms_of_heads_that_move_are_found(bound: Library, tmp_path: Path) -> None:
    layer, step = Layer(build_layers(tmp_path, MODELS[3], build_of(torch.float16)), 1), random_step([1, 2], [9, 30])
    for norm in (layer.layer.attn.qk_norm.q, layer.layer.attn.qk_norm.k):
        check_layer(layer, step, first=False)
        norm.weight.data = norm.weight.data / 2
    check_layer(layer, step, first=False)


@torch.inference_mode()
def test_what_the_library_has_no_form_for_runs_in_parts(moe: Layer) -> None:
    """A plane beside keys and values, which torch writes nothing to."""
    step = random_step([1, 2], [9, 30])
    x, residual = torch.randn(2, 3, moe.hidden).half()
    expected = moe.attend(ops.attention_sublayer, step, x, residual)[:2]
    moe.cache["latent"] = torch.zeros(BLOCKS, SIZE, 3)
    again = moe.attend(ops.attention_sublayer, step, x, residual)[:2]
    assert all((a.float() - b.float()).abs().max() < 0.05 for a, b in zip(expected, again, strict=True))
    assert moe.layer._attention_sublayer is not None


@torch.inference_mode()
def test_threads_of_python_share_a_layer(moe: Layer) -> None:
    given = [torch.randn(2, rows, moe.hidden).half() for rows in (1, 40, 3, 600)]
    expected = [moe.feed_forward(ops.feed_forward_sublayer.reference, *rows)[0] for rows in given]

    @torch.inference_mode()
    def same(i: int) -> bool:
        return torch.equal(moe.feed_forward(ops.feed_forward_sublayer, *given[i % 4])[0], expected[i % 4])

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(same, range(60)))


def test_no_rows(moe: Layer) -> None:
    out, total = moe.feed_forward(ops.feed_forward_sublayer, *torch.randn(2, 0, moe.hidden).half())
    assert out.shape == total.shape == (0, moe.hidden)
