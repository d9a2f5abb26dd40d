"""Latent attention: one latent and one rotary key a token, whole on every rank; queries and results cut by heads.

Pairs of adjacent values of a head turn together in the published models. Here, as in plain attention, d and d + Y/2 do:
the rows of queries and of the rotary key are reordered while they are read, alike, so that scores stay the same. The
rotated values of a query come first, because `ops.rope` turns the first ones.
"""

from __future__ import annotations

from torch import Tensor, nn

from atb_models import ops
from atb_models.layers.build import Build
from atb_models.layers.heads import share_heads
from atb_models.layers.latent_sizes import LatentSizes
from atb_models.layers.linear import Linear, part_linear, row_linear
from atb_models.layers.norm import RmsNorm
from atb_models.layers.parameter import Part, cut, hold
from atb_models.layers.share import Share
from atb_models.ops.kv_cache import LayerCache
from atb_models.ops.plane import Plane, latent_and_rope_key
from atb_models.ops.step import StepInput
from atb_models.ops.table import check_latent_attention

NORM_EPS = 1e-6  # of the norms of low ranks, whatever the model's other norms have


class LatentAttention(nn.Module):
    """Multi-head latent attention; the caller sums the ranks' results.

    heads: of a rank, zero heads included. scale: of the scores. bias: whether what makes low ranks, and the output,
    have biases. Raises ConfigError where the bound backend does not serve it.
    """

    def __init__(
        self, build: Build, hidden: int, heads: int, sizes: LatentSizes, *, scale: float, bias: bool = False
    ) -> None:
        super().__init__()
        check_latent_attention()
        step = build.head_step(sizes.value, "o.weight")
        self.shares = share_heads(heads, heads, build.tensor.size, step)
        own = self.shares.queries(build.tensor.rank)
        self.heads, self.sizes, self.scale = own.width, sizes, scale
        self.planes: tuple[Plane, ...] = latent_and_rope_key(sizes.kv_rank, sizes.rotary, build.kv_dtype or build.dtype)
        self.q_a, self.q_norm = None, None
        if sizes.q_rank is not None:
            self.q_a = _whole(build.within("q_a"), hidden, sizes.q_rank, bias=bias)
            self.q_norm = RmsNorm(build.within("q_norm"), sizes.q_rank, NORM_EPS)
        self.q = _queries(build.within("q"), sizes.q_rank or hidden, own, sizes)
        order = tuple(range(sizes.kv_rank)) + _halves(sizes.kv_rank, sizes.rotary)
        self.kv_a = _whole(build.within("kv_a"), hidden, sizes.kv_rank + sizes.rotary, bias=bias, order=order)
        self.kv_norm = RmsNorm(build.within("kv_norm"), sizes.kv_rank, NORM_EPS)
        self.kv_b = KeysAndValues(build, own, sizes)
        self.o = row_linear(build.within("o"), own.times(sizes.value), hidden, bias=bias)

    def forward(self, x_TH: Tensor, step: StepInput, rope: tuple[Tensor, Tensor], cache: LayerCache) -> Tensor:
        low_TI = x_TH if self.q_a is None or self.q_norm is None else self.q_norm(self.q_a(x_TH))
        q_TND = self.q(low_TI).view(x_TH.shape[0], self.heads, self.sizes.head)
        latent_TZ, rope_key_TY = self.kv_a(x_TH).split((self.sizes.kv_rank, self.sizes.rotary), dim=1)
        q_TND = ops.rope_and_latent_cache(q_TND, self.kv_norm(latent_TZ), rope_key_TY, *rope, cache, step)
        out_TND = ops.latent_attention(q_TND, self.kv_b.weight, cache, step, self.scale)
        return self.o(out_TND.flatten(1))


class KeysAndValues(nn.Module):
    """What makes each head's keys and values of a latent. Attention takes it apart, so it is of floats always."""

    weight: nn.Parameter

    def __init__(self, build: Build, heads: Share, sizes: LatentSizes) -> None:
        super().__init__()
        rows = heads.times(sizes.nope + sizes.value)
        weight = build.parameter(rows.width, sizes.kv_rank, padded=rows.padded)
        hold(self, "weight", weight, {"": cut((rows.total, sizes.kv_rank), 0, rows.span)})


def _halves(first: int, count: int) -> tuple[int, ...]:
    """The places of adjacent pairs, from `first` on, in the order in which one half turns with the other."""
    return (*range(first, first + count, 2), *range(first + 1, first + count, 2))


def _queries(build: Build, inputs: int, heads: Share, sizes: LatentSizes) -> Linear:
    """Of a head the checkpoint has the values without a position first."""
    rows = heads.times(sizes.head)
    order = _halves(sizes.nope, sizes.rotary) + tuple(range(sizes.nope))
    part = cut((rows.total, inputs), 0, rows.span, order=order)
    return part_linear(build, part, rows.width, inputs, padded=rows.padded)


def _whole(build: Build, inputs: int, outputs: int, *, bias: bool, order: tuple[int, ...] | None = None) -> Linear:
    """A linear map that every rank has entirely."""
    return part_linear(build, Part((outputs, inputs), order=order), outputs, inputs, bias=bias)
