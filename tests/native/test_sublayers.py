"""The sublayers of a decoder layer as one call each: the bits of their parts, what is refused, what a step calls."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from atb_models.layers.quantization import quantization
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from atb_models import LLM, SamplingParams, ops
from atb_models.graph import meta_model, meta_step, trace
from atb_models.layers.build import Build
from atb_models.models.config_reader import load_model_config
from atb_models.models.decoder import Decoder, DecoderLayer, build_model
from atb_models.ops.kv_cache import LayerCache, make_cache
from atb_models.ops.native import library as loader
from atb_models.ops.native.library import Library
from atb_models.ops.step import StepInput
from atb_models.profiler import Recorder
from tests.native.cases import DTYPES
from tests.records import attention_step, build_of
from tests.tiny import FAMILIES

SIZE, BLOCKS = 16, 140
# (query lengths, KV lengths): decoding, prompts, both with chunks, more rows than a call takes at a time
STEPS = [([1], [1]), ([1, 1, 1], [5, 170, 16]), ([7], [7]), ([3, 1, 40], [30, 61, 40]), ([1, 530], [3, 535])]
# Biases of q, k and v, grouped heads and gated shared experts; biases of all four and no shared experts; MLP and MoE.
MODELS: list[dict[str, Any]] = [
    FAMILIES["qwen"] | {"num_key_value_heads": 2, "moe_intermediate_size": 30, "shared_expert_intermediate_size": 70},
    FAMILIES["xverse"] | {"attention_bias": True, "num_shared_experts": 0, "num_key_value_heads": 4, "hidden_size": 80},
    FAMILIES["deepseek"] | {"intermediate_size": 90, "moe_intermediate_size": 33},
]
Sublayer = Callable[..., tuple[Tensor, Tensor]]


@pytest.fixture
def bound(library: Library, monkeypatch: pytest.MonkeyPatch) -> Iterator[Library]:
    monkeypatch.setenv("ATB_CPU_ISA", library.level.name)
    ops.bind("cpu")
    yield library
    ops.bind("reference")


def build_layers(folder: Path, fields: dict[str, Any], build: Build) -> Decoder:
    """A model of random weights, as the bound backend stores them."""
    (folder / "config.json").write_text(json.dumps(fields | {"num_hidden_layers": 2}))
    model = build_model(load_model_config(folder), build)
    for parameter in model.parameters():
        values = torch.randn(parameter.shape)
        integers = parameter.dtype == torch.int8
        parameter.copy_((values * 40).clamp(-128, 127) if integers else values.abs() / 20 + 0.01)
        if not integers and parameter.dim() > 1:
            parameter.copy_(values / 10)
    return model


def random_step(queries: list[int], lengths: list[int]) -> StepInput:
    tables = torch.randperm(BLOCKS, dtype=torch.int32)[: len(lengths) * 34].view(len(lengths), -1)
    places = [(row, i) for row, (q, kv) in enumerate(zip(queries, lengths, strict=True)) for i in range(kv - q, kv)]
    slots = [int(tables[row, i // SIZE]) * SIZE + i % SIZE for row, i in places]
    return attention_step(queries, lengths, tables, torch.tensor(slots, dtype=torch.int32))


class Layer:
    """A layer with a cache of random content."""

    def __init__(self, model: Decoder, index: int) -> None:
        self.layer: DecoderLayer = model.layers[index]
        self.dtype, self.hidden = self.layer.build.dtype, model.config.hidden_size
        self.half = model.config.head_dim // 2
        planes, device = self.layer.attn.planes, torch.device("cpu")
        self.cache = make_cache(planes, BLOCKS, SIZE, lambda *size: torch.randn(size[0], device=device).to(size[1]))

    def attend(
        self, sublayer: Sublayer, step: StepInput, x: Tensor | None, residual: Tensor
    ) -> tuple[Tensor, Tensor, LayerCache]:
        cache = LayerCache((name, plane.clone()) for name, plane in self.cache.items())
        angle = torch.arange(len(residual) * self.half).view(len(residual), self.half) / 7
        out = sublayer(x, residual, self.layer._attention_sublayer, angle.cos(), angle.sin(), cache, step)
        return *out, cache

    def feed_forward(self, sublayer: Sublayer, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        return sublayer(x, residual, self.layer._feed_forward_sublayer, self.layer.mlp.counter_E)


@pytest.mark.parametrize("fields", MODELS, ids=["qwen", "xverse", "deepseek"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", [None, "w8a16"])
@torch.inference_mode()
def test_the_bits_of_the_parts(
    bound: Library, tmp_path: Path, fields: dict[str, Any], dtype: torch.dtype, method: str | None
) -> None:
    """On one rank, and on the last of several, whose widths are padded and which adds no bias."""
    torch.set_num_threads(2)
    for rank, size in ((0, 1), (3, 4)):
        build = build_of(dtype, rank, size, quantization=quantization(method))
        model = build_layers(tmp_path, fields, build)
        for index, (queries, lengths) in itertools.product(range(2), STEPS):
            check_layer(Layer(model, index), random_step(queries, lengths), first=index == 0)


def check_layer(layer: Layer, step: StepInput, *, first: bool) -> None:
    # Rows of x and of the residual stream need not lie one after the other.
    x, residual = torch.randn(2, sum(step.query_lens), layer.hidden + 8).to(layer.dtype)[..., 3:-5]
    given = None if first else x
    *ours, cache = layer.attend(ops.attention_sublayer, step, given, residual)
    *parts, expected = layer.attend(ops.attention_sublayer.reference, step, given, residual)
    assert all(torch.equal(a, b) and a.isfinite().all() for a, b in zip(ours, parts, strict=True))
    assert all(torch.equal(cache[name], expected[name]) for name in ("k", "v"))
    assert not torch.equal(cache.k_PSMD, layer.cache.k_PSMD) and ours[0].abs().max() > 0
    moe = hasattr(layer.layer.mlp, "count_tokens")
    results, counts = [], []
    for sublayer in (ops.feed_forward_sublayer, ops.feed_forward_sublayer.reference):
        counts += [layer.layer.mlp.count_tokens()] if moe else []
        results.append(layer.feed_forward(sublayer, x, residual))
    ours, parts = results
    assert all(torch.equal(a, b) and a.isfinite().all() for a, b in zip(ours, parts, strict=True))
    assert ours[0].abs().max() > 0
    assert not moe or (torch.equal(*counts) and counts[0].sum() > 0)


@pytest.fixture
def moe(bound: Library, tmp_path: Path) -> Layer:
    """A mixture-of-experts layer with everything that one can have."""
    with torch.inference_mode():
        return Layer(build_layers(tmp_path, MODELS[0], build_of(torch.float16)), 1)


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


class Called(TorchDispatchMode):
    """Notes torch's functions, and the library's by `noting`."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))

    def noting(self, name: str, function: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object) -> object:
            self.names.append(name)
            return function(*args)

        return call


def test_a_layer_of_a_decode_step_is_two_calls(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the library; torch makes the memory of the results, and does nothing else."""
    level = loader.active().level
    assert level is not None
    library, called = loader.load(level.name), Called()
    functions = {name: value for name, value in vars(library).items() if hasattr(value, "argtypes")}
    assert len(functions) > 15
    steps: list[list[list[str]]] = [[]]
    forward = DecoderLayer.forward

    def noted(self: DecoderLayer, *args: Any) -> None:
        called.names = []
        with called:
            forward(self, *args)
            called.names.append("end")
        steps[-1].append(called.names)

    monkeypatch.setattr(DecoderLayer, "forward", noted)
    with LLM(demo, device="cpu", kv_blocks=4) as llm:
        for name, function in functions.items():
            monkeypatch.setattr(library, name, called.noting(name, function))
        llm._runner.model.register_forward_pre_hook(lambda *_: steps.append([]))
        llm.generate([[5, 6, 7]], SamplingParams(max_tokens=4, temperature=0, ignore_eos=True))
    layers = load_model_config(demo).num_hidden_layers
    made = "aten.empty_like.default"
    first = [made, "attention_sublayer", made, made, "feed_forward_sublayer"]
    named = [names[: names.index("end")] for names in steps[-1]]
    assert named == [first, *[[made, *first]] * (layers - 1)]


def test_sublayers_are_one_node_and_one_call(demo: Path) -> None:
    config = load_model_config(demo)
    ops.bind("cpu")
    graph = trace(meta_model(config, torch.float16), meta_step([40, 1], [40, 70], 16))
    layers, sublayers = config.num_hidden_layers, {"AttentionSublayer", "FeedForwardSublayer"}
    assert all(graph.counts()[name] == layers for name in sublayers) and graph.stray == ()
    outside = {"RopeTables", "Embedding", "AddRmsNorm", "SelectRows", "Linear", "ToFloat"}
    assert graph.counts().keys() - sublayers == outside
    attention, feed_forward, second = (node for node in graph.nodes if node.op in sublayers and node.index < 5)
    assert {node.backend for node in (attention, feed_forward)} == {"cpu"}
    assert (attention.module, feed_forward.module, second.module) == ("layers.0", "layers.0", "layers.1")
    assert set(attention.writes) == {"layers.0.k_PSMD", "layers.0.v_PSMD"}
    assert [value.node for value in feed_forward.inputs[:2]] == [attention.index] * 2
    assert all(output.shape == (41, config.hidden_size) for output in feed_forward.outputs)
    routed = next(node for node in graph.nodes if node.module == "layers.1" and node.op == "FeedForwardSublayer")
    assert routed.peak_bytes > 41 * config.num_experts_per_tok * 64 * 2, "the library's workspace is counted"
    ops.bind("reference")
    parts = trace(meta_model(config, torch.float16), meta_step([40, 1], [40, 70], 16))
    assert sum(node.cost.flops for node in graph.nodes) == sum(node.cost.flops for node in parts.nodes)
    assert graph.cost.read < parts.cost.read and graph.cost.written < parts.cost.written
    with LLM(demo, device="cpu", kv_blocks=4) as llm, Recorder(llm._runner) as recorder:
        llm.prompt_logits([5, 6, 7])
    called = [call.op for call in recorder.profile.calls]
    assert all(called.count(name) == layers for name in sublayers) and set(called) - sublayers == outside
