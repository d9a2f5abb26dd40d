"""The paged KV cache of a layer: the tensors of the planes that its attention declares.

A plane is [P, S, M, D] (or [P, S, D] where it has no heads): P blocks of S slots. slot = block * S + offset in the
block. Only a backend that says so (`ops.kv_plane_shape`) has a plane whose D is wider than what is declared.

A plane of int8 has another beside it, [P, S, M, 1], with the scale of each vector. What is written goes there as
integers, what is read are the floats that they stand for, whoever reads: also the step that has just written them. So
it does not matter in how many steps a sequence was computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from atb_models.ops.plane import Plane, scale_of
from atb_models.ops.table import kv_plane_shape

Allocate = Callable[[tuple[int, ...], torch.dtype], Tensor]


class LayerCache(dict[str, Tensor]):
    """One layer's planes by name; plain attention has "k" and "v", latent attention "latent" and "rope_key", and each
    beside int8 another with "_scale" behind its name."""

    @property
    def k_PSMD(self) -> Tensor:
        """The keys."""
        return self["k"]

    @property
    def v_PSMD(self) -> Tensor:
        """The values."""
        return self["v"]

    @property
    def latent_PSZ(self) -> Tensor:
        """The latents of latent attention."""
        return self["latent"]

    @property
    def rope_key_PSY(self) -> Tensor:
        """The rotary keys of latent attention."""
        return self["rope_key"]

    def write(self, name: str, x_TMD: Tensor, slots_T: Tensor) -> None:
        """Put vectors into their slots of a plane, as integers where that is int8. Raises ValueError for a shape."""
        plane_PSMD, scale_PSM1 = self[name], self.get(scale_of(name))
        if x_TMD.shape[1:] != plane_PSMD.shape[2:]:
            raise ValueError(f"{tuple(x_TMD.shape)} does not go into a cache of {tuple(plane_PSMD.shape)}")
        if scale_PSM1 is not None:
            x_TMD, scale_TM1 = quantize_vectors(x_TMD)
            scale_PSM1.view(-1, *scale_TM1.shape[1:])[slots_T] = scale_TM1
        plane_PSMD.view(-1, *x_TMD.shape[1:])[slots_T] = x_TMD

    def read(self, name: str, blocks: Tensor) -> Tensor:
        """A copy of these blocks of a plane in float32, slot after slot: [slots, M, D]."""
        x = _gather(self[name], blocks).float()
        scale_PSM1 = self.get(scale_of(name))
        return x if scale_PSM1 is None else x.mul_(_gather(scale_PSM1, blocks))


def make_cache(planes: Iterable[Plane], num_blocks: int, block_size: int, allocate: Allocate) -> LayerCache:
    """A layer's cache as the bound backend lays it out. Raises ConfigError for what its attention does not take."""
    return LayerCache(
        (plane.name, allocate((num_blocks, *kv_plane_shape(block_size, plane)), plane.dtype)) for plane in planes
    )


def quantize_vectors(x_TMD: Tensor) -> tuple[Tensor, Tensor]:
    """Vectors as int8 of -127 to 127 and a float32 scale each, [T, M, 1]: x = int8 * scale.

    scale = max |x| / 127, and 1 where that is 0; quotients to the nearest, halves to even; all in float32. The scale of
    a vector that is not finite is infinite or NaN, and so is what is read.
    """
    scale_TM1 = x_TMD.float().abs().amax(dim=-1, keepdim=True) / 127
    scale_TM1 = scale_TM1.masked_fill_(scale_TM1 == 0, 1)
    return (x_TMD.float() / scale_TM1).round_().clamp_(-127, 127).to(torch.int8), scale_TM1


def _gather(plane: Tensor, blocks: Tensor) -> Tensor:
    """A copy of these blocks, slot after slot; whole blocks at once, unlike advanced indexing."""
    return plane.index_select(0, blocks.flatten()).flatten(0, 1)


def block_bytes(planes: Iterable[Plane], block_size: int) -> int:
    """Bytes of one block of these planes, as the bound backend lays them out."""
    return sum(math.prod(kv_plane_shape(block_size, plane)) * plane.dtype.itemsize for plane in planes)
