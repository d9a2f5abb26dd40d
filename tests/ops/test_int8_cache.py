"""Keys and values as int8: the rule, what is read back, costs, and the planes in pools, plans and graphs."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from atb_models import LLM, ops
from atb_models.errors import ConfigError
from atb_models.graph import meta_model, meta_step, trace
from atb_models.models.config_reader import load_model_config
from atb_models.ops import table
from atb_models.ops.attention import attending, planes_by_name
from atb_models.ops.kv_cache import LayerCache, block_bytes, make_cache, quantize_vectors
from atb_models.ops.plane import key_and_value
from atb_models.plan.memory import kv_bytes_per_token
from tests.records import attention_step

T, N, M, D, S = 5, 4, 2, 24, 16


@pytest.fixture(autouse=True)
def _reference() -> None:
    ops.bind("reference")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def int8_cache(blocks: int, heads: int = M, width: int = D) -> LayerCache:
    planes = key_and_value(heads, width, torch.int8)
    return make_cache(planes, blocks, S, lambda shape, dtype: torch.zeros(shape, dtype=dtype))


def stored(x: Tensor) -> np.ndarray:
    """What int8 keeps of vectors [..., D], in numpy's float32."""
    rows = x.float().numpy()
    scale = np.abs(rows).max(axis=-1, keepdims=True) / np.float32(127)
    scale[scale == 0] = 1
    return np.rint(rows / scale).clip(-127, 127) * scale


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_what_is_read_back(dtype: torch.dtype) -> None:
    cache, slots = int8_cache(3), torch.tensor([40, 3, 17, 16, 0])
    for name, x_TMD in (("k", normal(T, M, D).to(dtype)), ("v", 100 * normal(T, M, D, seed=1).to(dtype))):
        cache.write(name, x_TMD, slots)
        assert torch.equal(cache.read(name, torch.arange(3))[slots], torch.from_numpy(stored(x_TMD)))
        assert cache[name].dtype == torch.int8 and cache[f"{name}_scale"].shape == (3, S, M, 1)


def test_halves_go_to_even_and_nothing_beyond_127() -> None:
    integers, scale = quantize_vectors(torch.tensor([[[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -127.0]]]))
    assert scale.tolist() == [[[1.0]]] and integers.flatten().tolist() == [127, 0, 2, 2, 0, -2, -127]
    integers, scale = quantize_vectors(torch.full((1, 1, 3), 2e-43))  # 1.1 of the least float32 for a scale, rounded
    assert integers.flatten().tolist() == [127] * 3 and 0 < scale.item() < 1.5e-45


def test_zeros_and_what_is_not_finite() -> None:
    integers, scale = quantize_vectors(torch.zeros(1, 2, 4))
    assert not integers.any() and scale.flatten().tolist() == [1, 1]
    for bad in (math.inf, math.nan):
        cache, x_TMD = int8_cache(1), normal(1, M, D)
        x_TMD[0, 1, 3] = bad
        cache.write("k", x_TMD, torch.tensor([2]))
        read = cache.read("k", torch.tensor([0]))[2]
        assert read[0].isfinite().all() and not read[1].isfinite().any()


def test_attention_over_what_int8_keeps() -> None:
    """A prompt's chunk reads its own tokens back from int8 too; the blocks' other slots hold garbage."""
    table_BC = torch.tensor([[2, 0], [1, 3]], dtype=torch.int32)
    cache = int8_cache(4)
    for plane in cache.values():
        plane.fill_(99)
    kept: dict[str, list[Tensor]] = {"k": [], "v": []}
    for row, length in enumerate((20, 19)):
        slots = torch.tensor([int(table_BC[row, i // S]) * S + i % S for i in range(length)])
        for place, name in enumerate(("k", "v")):
            x_TMD = normal(length, M, D, seed=10 * row + place)
            cache.write(name, x_TMD, slots)
            kept[name].append(torch.from_numpy(stored(x_TMD)).double())
    q_TND = normal(6, N, D, seed=50)
    out = ops.paged_attention(q_TND, cache, attention_step([5, 1], [20, 19], table_BC), 0.3)
    for t, (row, seen) in enumerate([(0, n) for n in range(16, 21)] + [(1, 19)]):
        for head in range(N):
            k, v = (kept[name][row][:seen, head // (N // M)] for name in ("k", "v"))
            exact = torch.softmax(0.3 * (k @ q_TND[t, head].double()), dim=0) @ v
            assert (out[t, head] - exact).abs().max() < 2e-6


def test_costs_are_those_of_the_bytes() -> None:
    k_TMD, v_TMD, q_TND = normal(T, M, D).half(), normal(T, M, D).half(), normal(T, N, D).half()
    step = attention_step([T], [30], torch.zeros(1, 2, dtype=torch.int32), torch.arange(T, dtype=torch.int32))
    angles = normal(T, D // 2), normal(T, D // 2)
    plain = make_cache(key_and_value(M, D, torch.float16), 2, S, lambda shape, dtype: torch.zeros(shape, dtype=dtype))
    int8 = int8_cache(2)
    kept, vector = T * M, D + 4  # vectors of keys, bytes of one
    write = {name: ops.reshape_and_cache.cost(None, k_TMD, v_TMD, cache, step) for name, cache in both(plain, int8)}
    assert (write["plain"].written, write["int8"].written) == (2 * kept * 2 * D, 2 * kept * vector)
    assert write["plain"].read == write["int8"].read == 2 * kept * 2 * D + 4 * T
    assert (write["plain"].flops, write["int8"].flops) == (0, 2 * kept * D)
    whole = {
        name: ops.rope_and_cache.cost(q_TND, q_TND, k_TMD, v_TMD, *angles, cache, step)
        for name, cache in both(plain, int8)
    }
    assert whole["int8"].flops - whole["plain"].flops == 2 * kept * D
    assert whole["plain"].written - whole["int8"].written == 2 * kept * (2 * D - vector)
    attend = {name: ops.paged_attention.cost(q_TND, q_TND, cache, step, 1.0) for name, cache in both(plain, int8)}
    assert attend["plain"].read - attend["int8"].read == 30 * 2 * M * (2 * D - vector)
    assert attend["plain"].flops == attend["int8"].flops


def both(plain: LayerCache, int8: LayerCache) -> list[tuple[str, LayerCache]]:
    return [("plain", plain), ("int8", int8)]


@pytest.mark.parametrize("tp", [1, 8])
def test_planes_are_planned_and_traced(demo: Path, tp: int) -> None:
    model = meta_model(load_model_config(demo), torch.bfloat16, tp, kv_dtype=torch.int8)
    heads = 8 // tp
    assert model.layers[0].attn.planes == key_and_value(heads, 16, torch.int8)
    assert kv_bytes_per_token(model.layers) == len(model.layers) * 2 * heads * (16 + 4)
    graph = trace(model, meta_step([3, 1], [3, 7], 16))
    (write, *_), (read, *_) = ([n for n in graph.nodes if n.op == op] for op in ("ReshapeAndCache", "PagedAttention"))
    planes = {f"layers.0.{name}_PSMD" for name in ("k", "v", "k_scale", "v_scale")}
    assert planes == set(write.writes) and planes < {value.name for value in read.inputs}
    dtypes = {value.name: value.dtype for value in read.inputs}
    assert (dtypes["layers.0.k_PSMD"], dtypes["layers.0.v_scale_PSMD"]) == (torch.int8, torch.float32)
    assert graph.kv_dtype == torch.int8


@pytest.mark.parametrize("blocks", [3, None])
def test_the_pool_is_the_planned_one(demo: Path, blocks: int | None) -> None:
    limits = dict(kv_blocks=blocks, block_size=16, max_batch_size=2, max_seq_len=64)
    with LLM(demo, device="cpu", kv_dtype="int8", **limits) as llm:  # type: ignore[arg-type]
        pool = [plane for cache in llm._runner.caches for plane in cache.values()]
        assert sum(plane.nbytes for plane in pool) == (blocks or 8) * 16 * 4 * 2 * 8 * (16 + 4)


@pytest.mark.parametrize("kv_dtype", [None, torch.int8])
def test_a_device_without_float32_refuses_by_name(
    demo: Path, monkeypatch: pytest.MonkeyPatch, kv_dtype: torch.dtype | None
) -> None:
    """Whatever the cache has: it is attention that does not take these activations."""
    monkeypatch.setattr(table, "_bound", ("npu", table.Backend({}, float32=False)))
    config = load_model_config(demo)
    said = "dtype fp32: attention on npu takes fp16 and bf16; use --dtype fp16, or --device cpu"
    with pytest.raises(ConfigError, match=said):
        meta_model(config, torch.float32, kv_dtype=kv_dtype)
    meta_model(config, torch.float16, kv_dtype=kv_dtype)


@pytest.mark.parametrize(("heads", "head_dim"), [(16, 128), (36, 80)])
def test_planes_of_the_npu(heads: int, head_dim: int) -> None:
    """Heads are as wide as the operator's, and the scales of a block lie head after head."""
    planes = key_and_value(heads, head_dim, torch.int8)
    with ops.laid_out_for("npu"):
        cache = make_cache(planes, 2, 128, lambda shape, dtype: torch.zeros(shape, dtype=dtype, device="meta"))
        assert block_bytes(planes, 128) == 2 * heads * 128 * (128 + 4)
    assert cache["k"].shape == cache["v"].shape == (2, 128, heads, 128)
    assert cache["k_scale"].shape == cache["v_scale"].shape == (2, heads, 128)
    assert set(planes_by_name(cache)) == {
        *("k_cache_PSMD", "v_cache_PSMD", "k_scale_cache_PMS", "v_scale_cache_PMS"),
    }
    step = attention_step([1, 1], [200, 3], torch.zeros(2, 2, dtype=torch.int32))
    read = attending(heads, head_dim, cache, step).read
    assert read == 203 * 2 * heads * (128 + 4) + 3 * 4, "each token of each head, and the blocks' numbers"
