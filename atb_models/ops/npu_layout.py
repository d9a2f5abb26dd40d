"""How the NPU lays out the KV cache, for plans on machines without torch_npu (see `npu`)."""

from __future__ import annotations

import torch
from torch import Tensor

from atb_models.ops.kv_cache import LayerCache
from atb_models.ops.plane import Plane
from atb_models.ops.step import StepInput
from atb_models.ops.table import Backend, Body

HEAD_SIZE = 128  # of the attention operator; narrower heads lie padded with zeros
QUANTIZED = False  # no operation takes weights of integers with scales


def layouts() -> Backend:
    """The shapes of the cache and of what works on it; the packing of the experts takes as many bytes as none."""
    shapes: dict[str, Body] = {"ReshapeAndCache": _reshape_and_cache, "PagedAttention": _paged_attention}
    return Backend({}, shapes, plane_shape=_plane_shape, quantized=QUANTIZED)


def _plane_shape(block_size: int, plane: Plane) -> tuple[int, ...]:
    """Heads as wide as the operator's; what it does not take, as it is declared."""
    if plane.heads is None or plane.width > HEAD_SIZE:
        return plane.block_shape(block_size)
    return block_size, plane.heads, HEAD_SIZE


def _reshape_and_cache(k_TMD: Tensor, v_TMD: Tensor, cache: LayerCache, step: StepInput) -> None:
    """Heads may be narrower than the cache."""


def _paged_attention(q_TND: Tensor, cache: LayerCache, step: StepInput, scale: float) -> Tensor:
    return torch.empty_like(q_TND)
