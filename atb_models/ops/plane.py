"""What a token leaves in the KV cache of a layer, as the layer's attention declares it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

_SCALE = "_scale"  # ends the name


@dataclass(frozen=True)
class Plane:
    """One tensor of the cache: of each token, on this rank, `heads` vectors of `width` elements.

    heads: the rank's KV heads; None where one vector serves all heads, which every rank then holds whole.
    """

    name: str
    heads: int | None
    width: int
    dtype: torch.dtype

    @property
    def holds_scales(self) -> bool:
        """Whether it holds the scales of another."""
        return is_scale(self.name)

    def block_shape(self, block_size: int) -> tuple[int, ...]:
        """A block of it: [S, M, D], or [S, D] of a plane without heads."""
        heads = () if self.heads is None else (self.heads,)
        return block_size, *heads, self.width


def key_and_value(heads: int, head_dim: int, dtype: torch.dtype) -> tuple[Plane, ...]:
    """The planes of plain attention: K and V of each KV head; beside int8 a float32 scale of each of these vectors."""
    names = ("k", "v")
    vectors = tuple(Plane(name, heads, head_dim, dtype) for name in names)
    if dtype != torch.int8:
        return vectors
    return vectors + tuple(Plane(scale_of(name), heads, 1, torch.float32) for name in names)


def latent_and_rope_key(latent: int, rotary: int, dtype: torch.dtype) -> tuple[Plane, ...]:
    """The planes of latent attention: a latent and a rotary key, so many values wide; beside int8 a float32 scale of
    each of these vectors."""
    vectors = (Plane("latent", None, latent, dtype), Plane("rope_key", None, rotary, dtype))
    if dtype != torch.int8:
        return vectors
    return vectors + tuple(Plane(scale_of(plane.name), None, 1, torch.float32) for plane in vectors)


def scale_of(name: str) -> str:
    """The name of the plane that holds the scales of another."""
    return name + _SCALE


def is_scale(name: str) -> bool:
    """Whether the plane of that name holds the scales of another."""
    return name.endswith(_SCALE)
