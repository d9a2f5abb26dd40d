"""Memory as the recorder follows it: workspaces, peaks against a forward with values, identities of storages."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from atb_models import ops
from atb_models.graph import meta_caches, meta_model, trace
from atb_models.graph.memory import StorageMode
from atb_models.graph.paths import storage_key
from atb_models.models.config_reader import load_model_config
from atb_models.ops.weight import Weight, tensors_of
from tests.graph.real import BLOCK_SIZE, NUM_BLOCKS, meta_like, real_caches, real_model, real_step, watch
from tests.records import map_tensors


def meta(*shape: int, dtype: torch.dtype = torch.float16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def ignore(function: str) -> None:
    pass


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_peaks_are_those_of_a_forward_with_values(demo: Path, dtype: torch.dtype) -> None:
    """Operation by operation, prefill and decode in one step, workspaces included."""
    ops.bind("reference")
    model, step = real_model(demo, dtype), real_step()
    watched = watch(model, step, real_caches(model))
    bare = meta_model(load_model_config(demo), dtype)
    graph = trace(bare, meta_like(step), meta_caches(bare, NUM_BLOCKS, BLOCK_SIZE))
    assert [(node.op, node.peak_bytes) for node in graph.nodes] == watched.peaks
    assert graph.peak_activation_bytes == max(peak for _, peak in watched.peaks) > 0


def test_a_workspace_counts_while_it_lives() -> None:
    x, weight = meta(6, 10), meta(4, 10, dtype=torch.float32)
    with torch.no_grad(), StorageMode([x, weight], ignore) as memory:
        scores = ops.router.reference(x, Weight.plain(weight))
    assert memory.peak == 6 * 10 * 4 + 6 * 4 * 4  # x in float32 and the scores
    assert memory.live == scores.nbytes == 6 * 4 * 4
    del scores
    assert memory.live == 0


def test_only_one_tile_of_rows_is_wide_while_they_are_summed() -> None:
    y, rows, weights = meta(2200, 4), meta(1100, 2, dtype=torch.int64), meta(1100, 2, dtype=torch.float32)
    with torch.no_grad(), StorageMode([y, rows, weights], ignore) as memory:
        ops.moe_finalize_routing.reference(y, rows, weights)
    assert memory.peak == 1100 * 4 * 2 + 512 * 2 * 4 * (2 + 4)  # the result; rows as they are and in float32


def test_views_and_known_tensors_take_no_memory() -> None:
    known = meta(8, 8)
    with StorageMode([known], ignore) as memory:
        views = known[:4], known.t(), known.view(-1)
    assert memory.live == memory.peak == 0
    assert {memory.identity(view) for view in views} == {memory.identity(known)}


def test_an_identity_is_never_used_again_though_a_key_is() -> None:
    keys, identities = [], []
    with StorageMode([], ignore) as memory:
        for _ in range(50):
            tensor = meta(3) + 1
            keys.append(storage_key(tensor))
            identities.append(memory.identity(tensor))
            del tensor
    assert len(set(keys)) < 50
    assert len(set(identities)) == 50


def test_writes_are_seen_through_views() -> None:
    x, other = meta(4, 4), meta(4, 4)
    with StorageMode([x, other], ignore) as memory:
        x.t()[1:].add_(1)
        torch.mm(other, other, out=(out := meta(4, 4)))
    assert memory.written == {memory.identity(x), memory.identity(out)}


def test_the_cpus_grouped_product_plans_for_one_expert_with_all_tokens() -> None:
    """Its rule's peak is that of its body where every token chose the same expert first."""
    ops.bind("cpu")
    tokens, top_k, experts, inputs, outputs = 64, 2, 4, 48, 80
    counts = torch.tensor([tokens, tokens, 0, 0])
    weight = Weight.plain(torch.zeros(experts, outputs, inputs).half())
    given = (torch.zeros(tokens * top_k, inputs).half(), weight, counts, top_k)
    on_meta = tuple(map_tensors(lambda x: x.to("meta"), arg) for arg in given)
    peaks = []
    for body, args in ((ops.grouped_matmul.run, given), (ops.grouped_matmul.shape, on_meta)):
        mode = StorageMode(list(tensors_of({str(place): arg for place, arg in enumerate(args)}).values()), ignore)
        with torch.no_grad(), mode:
            body(*args)
        peaks.append(mode.peak)
    assert peaks[0] == peaks[1] > 2 * tokens * top_k * outputs
