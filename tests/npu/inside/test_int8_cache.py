"""An int8 KV cache on the pretend device: what each row of a step meets, against attention in float64."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from atb_models import ops
from atb_models.errors import ConfigError
from atb_models.graph import meta_model
from atb_models.models.config_reader import load_model_config
from atb_models.ops.kv_cache import LayerCache, make_cache
from atb_models.ops.plane import key_and_value
from atb_models.ops.step import StepInput
from tests.records import attention_step, map_tensors

F16, I8, I32 = torch.float16, torch.int8, torch.int32
BLOCKS, HEADS = 24, 4
# A step: rows that decode, prompts whole and in chunks, of which one has a single token.
QUERY_LENS = [1, 1, 30, 5, 1, 7, 130]
KV_LENS = [200, 1, 30, 133, 129, 263, 260]
TABLE = [[7, 2, 0], [5, 0, 0], [11, 0, 0], [1, 9, 0], [4, 10, 0], [3, 8, 6], [15, 20, 17]]


@pytest.fixture(autouse=True, scope="module")
def backend() -> None:
    ops.bind("npu")
    torch.npu.set_device(0)


def normal(*shape: int, dtype: torch.dtype, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def down(value: Tensor) -> Tensor:
    return value.to("npu:0")


def kept(x_TMD: Tensor) -> Tensor:
    """The floats that int8 with a scale for each vector stands for, in float64."""
    scale = x_TMD.float().abs().amax(dim=-1, keepdim=True) / 127
    integers = torch.where(scale > 0, x_TMD.float() / scale, torch.zeros(())).round()
    return integers.double() * scale.double()


def filled(kv_heads: int, head: int, block_size: int = 128) -> LayerCache:
    """With garbage, which nobody may read."""
    planes = key_and_value(kv_heads, head, torch.int8)
    return make_cache(
        planes,
        BLOCKS,
        block_size,
        lambda shape, dtype: torch.full(shape, 77 if dtype == I8 else torch.nan, dtype=dtype, device="npu:0"),
    )


def step_of(query_lens: list[int], kv_lens: list[int], block_size: int = 128) -> StepInput:
    """A step of the rows with tokens; their positions are the last of their sequences."""
    rows = [row for row, length in enumerate(query_lens) if length]
    slots = [
        TABLE[row][place // block_size] * block_size + place % block_size
        for row in rows
        for place in range(kv_lens[row] - query_lens[row], kv_lens[row])
    ]
    table = torch.tensor([TABLE[row] for row in rows], dtype=I32)
    lengths = [query_lens[row] for row in rows], [kv_lens[row] for row in rows]
    return map_tensors(down, attention_step(*lengths, table, torch.tensor(slots, dtype=I32)))


def attended(query: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    """One query [N, D] over what it sees, in float64."""
    keys, values = (x.double().repeat_interleave(HEADS // x.shape[1], 1) for x in (keys, values))
    weights = torch.einsum("nd,tnd->nt", query.double(), keys).mul(scale).softmax(-1)
    return torch.einsum("nt,tnd->nd", weights, values)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
@pytest.mark.parametrize(("head", "kv_heads", "block_size"), [(128, 4, 128), (80, 2, 128), (32, 1, 256)])
def test_what_each_row_meets(dtype: torch.dtype, head: int, kv_heads: int, block_size: int) -> None:
    """A single query meets integers alone; a chunk its own floats, and integers before them."""
    vectors = [
        [normal(length, kv_heads, head, dtype=dtype, seed=2 * row + place) for place in range(2)]
        for row, length in enumerate(KV_LENS)
    ]
    vectors[0][0][3, 0] = 0  # a vector of zeros, whose integers are not defined
    cache = filled(kv_heads, head, block_size)
    shapes = {name: tuple(plane.shape) for name, plane in cache.items()}
    assert shapes["k"] == shapes["v"] == (BLOCKS, block_size, kv_heads, 128)
    assert shapes["k_scale"] == shapes["v_scale"] == (BLOCKS, kv_heads, block_size)
    earlier = [kv - own for kv, own in zip(KV_LENS, QUERY_LENS, strict=True)]
    write(cache, vectors, earlier, earlier, block_size)
    step = write(cache, vectors, QUERY_LENS, KV_LENS, block_size)
    queries = normal(sum(QUERY_LENS), HEADS, head, dtype=dtype, seed=99)
    ours = ops.paged_attention(down(queries), cache, step, head**-0.5).cpu().double()
    exact, integers = torch.empty_like(ours), torch.empty_like(ours)
    token = 0
    for (k, v), own, kv_len in zip(vectors, QUERY_LENS, KV_LENS, strict=True):
        floats = kv_len - own if own > 1 else kv_len
        met = [torch.cat((kept(x[:floats]), x[floats:].double())) for x in (k, v)]
        for place in range(kv_len - own, kv_len):
            exact[token] = attended(queries[token], *(x[: place + 1] for x in met), head**-0.5)
            integers[token] = attended(queries[token], *(kept(x[: place + 1]) for x in (k, v)), head**-0.5)
            token += 1
    unit = torch.finfo(dtype).eps * exact.abs().max()
    assert ours.shape == queries.shape
    assert (ours - exact).abs().max() <= 0.5 * unit
    seen = (integers - exact).abs().max()
    assert seen > (4 if dtype == F16 else 0.5) * unit, "the measure sees whether a chunk meets floats"


def write(
    cache: LayerCache, vectors: list[list[Tensor]], query_lens: list[int], kv_lens: list[int], block_size: int
) -> StepInput:
    step = step_of(query_lens, kv_lens, block_size)
    spans = [slice(kv - own, kv) for own, kv in zip(query_lens, kv_lens, strict=True)]
    keys, values = (torch.cat([pair[i][span] for pair, span in zip(vectors, spans, strict=True)]) for i in range(2))
    ops.reshape_and_cache(down(keys), down(values), cache, step)
    return step


def test_steps_keep_no_floats_beyond_the_layer() -> None:
    """And none at all where every row has one query."""
    cache = filled(HEADS, 128)
    for query_lens, kv_lens in ((QUERY_LENS, KV_LENS), ([1, 1], [7, 8])):
        step = step_of(query_lens, kv_lens)
        x = down(normal(sum(query_lens), HEADS, 128, dtype=F16, seed=1))
        ops.reshape_and_cache(x, x, cache, step)
        assert any("floats" in name for name in step.bound) == (max(query_lens) > 1)
        ops.paged_attention(x, cache, step, 1.0)
        assert not any("floats" in name for name in step.bound)


def test_float32_is_refused_by_name(demo: Path) -> None:
    said = "dtype fp32: attention on npu takes fp16 and bf16; use --dtype fp16, or --device cpu"
    for kv_dtype in (None, torch.int8):
        with pytest.raises(ConfigError, match=said):
            meta_model(load_model_config(demo), torch.float32, kv_dtype=kv_dtype)
