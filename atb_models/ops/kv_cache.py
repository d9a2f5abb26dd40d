"""The paged KV cache of a layer: the tensors of the planes that its attention declares.

A plane is [P, S, M, D] (or [P, S, D] where it has no heads): P blocks of S slots. slot = block * S + offset in the
block. Only a backend that says so (`ops.kv_plane_shape`) has a plane whose D is wider than what is declared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from atb_models.ops.plane import Plane
from atb_models.ops.table import kv_plane_shape

Allocate = Callable[[tuple[int, ...], torch.dtype], Tensor]


class LayerCache(dict[str, Tensor]):
    """One layer's planes by name; plain attention has "k" and "v"."""

    @property
    def k_PSMD(self) -> Tensor:
        """The keys."""
        return self["k"]

    @property
    def v_PSMD(self) -> Tensor:
        """The values."""
        return self["v"]


def make_cache(planes: Iterable[Plane], num_blocks: int, block_size: int, allocate: Allocate) -> LayerCache:
    """A layer's cache as the bound backend lays it out. Raises ConfigError for what its attention does not take."""
    return LayerCache(
        (plane.name, allocate((num_blocks, *kv_plane_shape(block_size, plane)), plane.dtype)) for plane in planes
    )


def block_bytes(planes: Iterable[Plane], block_size: int) -> int:
    """Bytes of one block of these planes, as the bound backend lays them out."""
    return sum(math.prod(kv_plane_shape(block_size, plane)) * plane.dtype.itemsize for plane in planes)
