"""The real widths on fake tensors: every call keeps its contract, and none is served by anything but torch_npu."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from atb_models import ops
from atb_models.graph import meta_model, meta_step, trace
from atb_models.graph.meta import MetaGroup
from atb_models.layers.build import Build, ParallelGroup
from atb_models.layers.storage import METHODS
from atb_models.models.config import ModelConfig
from atb_models.models.config_reader import load_model_config
from atb_models.models.decoder import Decoder, build_model
from atb_models.models.quantization import model_quantization
from atb_models.ops import npu
from atb_models.ops.kv_cache import LayerCache, make_cache
from atb_models.ops.quantized import npu as npu_quantized
from tests.npu.conftest import NATIVE
from tests.npu.fake import ContractMode
from tests.parity.test_dimensions import LATER as DIMENSIONS
from tests.records import map_tensors

FIRST = ("deepseek-moe-16b-base", "qwen1.5-moe-a2.7b-chat", "xverse-moe-a4.2b")
LATER = ("Qwen3-30B-A3B", "Mixtral-8x7B")
all_models = pytest.mark.parametrize("config", [*FIRST, *LATER], indirect=True)
# The later models' products are those of the first ones at other widths.
first_models = pytest.mark.parametrize(
    "config", [*FIRST, *(pytest.param(name, marks=pytest.mark.full) for name in LATER)], indirect=True
)
STEPS = {
    "prompt": ([2048], [2048]),
    "prompts": ([2048] * 4, [2048] * 4),
    "one": ([1], [777]),
    "sixteen": ([1] * 16, list(range(500, 2100, 100))),
    "many": ([1] * 256, [300] * 256),
}


@pytest.fixture(autouse=True, scope="module")
def backend() -> None:
    torch.npu.set_device(0)
    ops.bind("npu")


@pytest.fixture
def config(request: pytest.FixtureRequest, shared: Path, tmp_path: Path) -> ModelConfig:
    """With one layer of each kind that the model has."""
    folder = shared / "headers" / request.param
    if request.param in LATER:
        folder = tmp_path
        (folder / "config.json").write_text(json.dumps(DIMENSIONS[request.param][0]))
    config = load_model_config(folder, log=False)
    kinds = tuple(sorted(set(config.moe_layers)))
    return dataclasses.replace(config, num_hidden_layers=len(kinds), moe_layers=kinds)


def model_on_device(
    config: ModelConfig,
    size: int,
    quantize: str | None = None,
    dtype: torch.dtype = torch.float16,
    kv_dtype: torch.dtype | None = None,
) -> Decoder:
    ranks = ParallelGroup(0, size, MetaGroup(0, size))
    stored = model_quantization(config, quantize)
    build = Build(dtype, torch.device("npu", 0), tensor=ranks, quantization=stored, kv_dtype=kv_dtype)
    return build_model(config, build)


def tables(kv_lens: list[int]) -> list[list[int]]:
    """Block tables of sequences that lie one after the other, all as long as the longest."""
    columns = -(-max(kv_lens) // 128)
    return [list(range(row * columns, (row + 1) * columns)) for row in range(len(kv_lens))]


def caches_on_device(model: Decoder, count: int) -> list[LayerCache]:
    def zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device="npu:0")

    return [make_cache(layer.attn.planes, count, 128, zeros) for layer in model.layers]


def expected_calls(config: ModelConfig) -> dict[str, int]:
    """Of torch_npu's operators in a step."""
    layers, moe = config.num_hidden_layers, sum(config.moe_layers)
    per_step = {
        "rms_norm": 1 + (2 * layers if config.qk_norm == "head" else 0),  # of queries, and of keys
        "add_rms_norm": 2 * layers,
        "rotary_mul": 2 * layers,
        "scatter_pa_kv_cache": layers,
        "fused_infer_attention_score": layers,
        "swiglu": layers + (moe if config.shared_intermediate_size else 0),  # routed and shared experts have one each
        "moe_gating_top_k": moe,
        "moe_init_routing_v2": moe,
        "grouped_matmul": 2 * moe,
        "moe_token_unpermute": moe,
    }
    return {f"npu::npu_{name}": count for name, count in per_step.items()}


@all_models
@pytest.mark.parametrize("size", [1, 3, 4, 8])
def test_every_call_keeps_its_contract(config: ModelConfig, size: int) -> None:
    npu._mask.cache_clear()
    with FakeTensorMode(allow_non_fake_inputs=True), torch.inference_mode():
        model = model_on_device(config, size)
        for query_lens, kv_lens in STEPS.values():
            blocks = tables(kv_lens)
            meta_like = meta_step(query_lens, kv_lens, 128)
            step = map_tensors(lambda x: torch.empty(x.shape, dtype=x.dtype, device="npu:0"), meta_like)
            with ContractMode() as mode:
                logits = model(step, caches_on_device(model, len(blocks) * len(blocks[0])))
            assert logits.shape == (len(query_lens), config.vocab_size)
            assert Counter(mode.calls) == expected_calls(config)
    npu._mask.cache_clear()


def expected_integer_calls(config: ModelConfig, quantize: str) -> dict[str, int]:
    """Of torch_npu's operators in a step, where all linear maps but the router and the head are integers."""
    layers, moe = config.num_hidden_layers, sum(config.moe_layers)
    linear = 2 * layers + 2 * (layers - moe) + (2 * moe if config.shared_intermediate_size else 0)
    if quantize != "w8a8_dynamic":
        return expected_calls(config) | {"npu::npu_weight_quant_batchmatmul": linear}
    return expected_calls(config) | {
        "npu::npu_quant_matmul": linear,
        "npu::npu_dynamic_quant": linear + 2 * moe,  # of the routed experts before each of two products
    }


@first_models
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("quantize", METHODS)
def test_calls_with_integers_keep_their_contracts(
    config: ModelConfig, quantize: str, size: int, dtype: torch.dtype
) -> None:
    npu._mask.cache_clear()
    npu_quantized._zeros.cache_clear()
    with FakeTensorMode(allow_non_fake_inputs=True), torch.inference_mode():
        model = model_on_device(config, size, quantize, dtype)
        for query_lens, kv_lens in (STEPS["prompt"], STEPS["sixteen"]):
            blocks = tables(kv_lens)
            step = map_tensors(
                lambda x: torch.empty(x.shape, dtype=x.dtype, device="npu:0"), meta_step(query_lens, kv_lens, 128)
            )
            with ContractMode() as mode:
                logits = model(step, caches_on_device(model, len(blocks) * len(blocks[0])))
            assert logits.shape == (len(query_lens), config.vocab_size)
            assert Counter(mode.calls) == expected_integer_calls(config, quantize)
    npu._mask.cache_clear()
    npu_quantized._zeros.cache_clear()


INT8_STEPS = {
    "prompts": ([2048] * 4, [2048] * 4, 1),
    "chunks": ([1000, 500], [3000, 500], 1),
    "sixteen": ([1] * 16, list(range(500, 2100, 100)), 1),
    "mixed": ([1] * 15 + [1000, 64], [700] * 15 + [2000, 64], 2),
}


@first_models
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
@pytest.mark.parametrize("size", [1, 4, 8])
def test_calls_over_an_int8_cache_keep_their_contracts(config: ModelConfig, size: int, dtype: torch.dtype) -> None:
    """Attention is one call for the rows with one query, and one for the chunks."""
    layers = config.num_hidden_layers
    npu._mask.cache_clear()
    with FakeTensorMode(allow_non_fake_inputs=True), torch.inference_mode():
        model = model_on_device(config, size, dtype=dtype, kv_dtype=torch.int8)
        for query_lens, kv_lens, attentions in INT8_STEPS.values():
            blocks = tables(kv_lens)
            step = map_tensors(
                lambda x: torch.empty(x.shape, dtype=x.dtype, device="npu:0"), meta_step(query_lens, kv_lens, 128)
            )
            with ContractMode() as mode:
                logits = model(step, caches_on_device(model, len(blocks) * len(blocks[0])))
            assert logits.shape == (len(query_lens), config.vocab_size)
            assert Counter(mode.calls) == expected_calls(config) | {
                "npu::npu_fused_infer_attention_score": attentions * layers,
                "npu::npu_dynamic_quant": 2 * layers,
                "npu::npu_scatter_nd_update_": 2 * layers,
            }
    npu._mask.cache_clear()


@first_models
@pytest.mark.parametrize("size", [1, 8])
@pytest.mark.parametrize("quantize", METHODS)
def test_no_operation_on_integers_falls_back(config: ModelConfig, quantize: str, size: int) -> None:
    """The row scales are put in the order of their experts by torch's own functions, which the backend calls."""
    graph = trace(meta_model(config, torch.float16, size, quantize=quantize), meta_step([2048], [2048], 128))
    assert graph.stray == () and graph.quantize == quantize
    served = {node.op: node.backend for node in graph.nodes}
    parts = ("Linear", "GroupedMatmul")
    if quantize == "w8a8_dynamic":
        parts = ("Quantize", "QuantMatmul", "QuantGroupedMatmul", "MoeRouteScales")
    assert {name: served[name] for name in parts} == dict.fromkeys(parts, "npu")


@all_models
@pytest.mark.parametrize("kv_dtype", [None, torch.int8])
@pytest.mark.parametrize("size", [1, 8])
def test_no_operation_falls_back(config: ModelConfig, size: int, kv_dtype: torch.dtype | None) -> None:
    for query_lens, kv_lens in (STEPS["prompt"], STEPS["sixteen"]):
        graph = trace(meta_model(config, torch.float16, size, kv_dtype=kv_dtype), meta_step(query_lens, kv_lens, 128))
        assert graph.stray == ()
        served = {node.op: node.backend for node in graph.nodes}
        assert {name: served[name] for name in NATIVE} == dict.fromkeys(NATIVE, "npu")
        moe, layers = sum(config.moe_layers), config.num_hidden_layers
        counts = graph.counts()
        assert (counts["PagedAttention"], counts["ReshapeAndCache"]) == (layers, layers)
        assert [counts[name] for name in NATIVE[-5:]] == [moe, moe, moe, 2 * moe, moe]
