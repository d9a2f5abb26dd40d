"""How the rows of a step attend over a KV cache of int8 on the NPU, in torch's own functions.

The attention operator reads int8 only where a sequence has one query. A longer chunk attends to floats: to its own keys
and values before they are quantised, and to the floats that the integers of earlier tokens stand for. So an answer
depends a little on how its prompt was cut into chunks. It does not where attention always reads what was stored.

The backend (`npu_cache`) and plans (`npu_layout`, on meta tensors) call the same functions, so a plan counts the memory
of these floats.
"""

from __future__ import annotations

from itertools import groupby
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from atb_models.ops.kv_cache import LayerCache
from atb_models.ops.plane import scale_of
from atb_models.ops.step import StepInput

FLOATS = "npu_cache.floats"  # in StepInput.bound, from the write of a layer to its attention


class RowSpan(NamedTuple):
    """Neighbouring rows of a step, and their tokens, that attend alike: with one query each, or with more."""

    rows: slice
    tokens: slice
    single: bool


def row_spans(step: StepInput) -> list[RowSpan]:
    """The spans of all rows, in order. The engine puts rows that decode first, so most steps have one or two."""
    found, row, token = [], 0, 0
    for single, group in groupby(step.query_lens, lambda length: length == 1):
        lengths = list(group)
        found.append(RowSpan(slice(row, row + len(lengths)), slice(token, token + sum(lengths)), single))
        row, token = row + len(lengths), token + sum(lengths)
    return found


def widened(x_TND: Tensor, width: int) -> Tensor:
    """Contiguous, the heads padded with zeros to `width`."""
    missing = width - x_TND.shape[-1]
    return F.pad(x_TND, (0, missing)) if missing else x_TND.contiguous()


def keep_floats(k_TMD: Tensor, v_TMD: Tensor, step: StepInput) -> None:
    """For the attention of the same layer, if it has chunks. The heads are as wide as the cache's."""
    if any(length > 1 for length in step.query_lens):
        step.bound[FLOATS] = {"k": k_TMD, "v": v_TMD}


def forget_floats(step: StepInput) -> None:
    """Free them, once the layer has attended."""
    step.bound.pop(FLOATS, None)


def chunk_operand(name: str, span: RowSpan, cache: LayerCache, step: StepInput) -> Tensor:
    """All that the chunks of a span see of a plane, sequence after sequence: floats [sum of their kv_lens, M, D]."""
    own_TMD: Tensor = step.bound[FLOATS][name][span.tokens]
    query_lens, kv_lens = step.query_lens[span.rows], step.kv_lens[span.rows]
    if query_lens == kv_lens:
        return own_TMD
    parts: list[Tensor] = []
    for chunk, kv_len, blocks_C in zip(own_TMD.split(query_lens), kv_lens, step.block_table_BC[span.rows], strict=True):
        if before := kv_len - len(chunk):
            parts.append(_read(cache, name, blocks_C, before).to(chunk.dtype))
        parts.append(chunk)
    return torch.cat(parts)


def _read(cache: LayerCache, name: str, blocks_C: Tensor, tokens: int) -> Tensor:
    """The first so many vectors of a sequence, [tokens, M, D] float32. Scales lie as [P, M, S]."""
    blocks = blocks_C[: -(-tokens // cache[name].shape[1])]
    x_TMD = cache[name].index_select(0, blocks).flatten(0, 1)[:tokens]
    scale_TM = cache[scale_of(name)].index_select(0, blocks).transpose(1, 2).flatten(0, 1)[:tokens]
    return x_TMD.float().mul_(scale_TM.unsqueeze(-1))
