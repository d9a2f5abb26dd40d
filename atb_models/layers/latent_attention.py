"""Latent attention: one latent and one rotary key a token, whole on every rank; queries and results cut by heads.

Pairs of adjacent values of a head turn together in the published models. Here, as in plain attention, d and d + Y/2 do:
the rows of queries and of the rotary key are reordered while they are read, alike, so that scores stay the same. The
rotated values of a query come first, because `ops.rope` turns the first ones.
"""

from __future__ import annotations

from torch import Tensor, nn

from atb_models import ops
from atb_models.layers.build import Build
from atb_models.layers.latent_sizes import LatentSizes
from atb_models.layers.linear import Linear, part_linear
from atb_models.layers.norm import RmsNorm
from atb_models.layers.parameter import Part, cut, hold
from atb_models.ops.kv_cache import LayerCache
from atb_models.ops.plane import Plane, latent_and_rope_key
from atb_models.ops.step import StepInput
from atb_models.ops.table import check_latent_attention

NORM_EPS = 1e-6  # of the norms of low ranks, whatever the model's other norms have


class LatentAttention(nn.Module):
    """Multi-head latent attention; the caller sums the ranks' results.

    Heads that do not divide by the ranks are filled up with heads of zeros. scale: of the scores. bias: whether what
    makes low ranks, and the output, have biases. Raises ConfigError where the bound backend does not serve it.
    """

    def __init__(
        self, build: Build, hidden: int, heads: int, sizes: LatentSizes, *, scale: float, bias: bool = False
    ) -> None:
        super().__init__()
        check_latent_attention()
        self.heads, self.sizes, self.scale = build.tensor.width(heads), sizes, scale
        self.planes: tuple[Plane, ...] = latent_and_rope_key(sizes.kv_rank, sizes.rotary, build.kv_dtype or build.dtype)
        self.q_a, self.q_norm = None, None
        if sizes.q_rank is not None:
            self.q_a = _whole(build.within("q_a"), hidden, sizes.q_rank, bias=bias)
            self.q_norm = RmsNorm(build.within("q_norm"), sizes.q_rank, NORM_EPS)
        self.q = _by_heads(build.within("q"), sizes.q_rank or hidden, heads, sizes)
        order = tuple(range(sizes.kv_rank)) + _halves(sizes.kv_rank, sizes.rotary)
        self.kv_a = _whole(build.within("kv_a"), hidden, sizes.kv_rank + sizes.rotary, bias=bias, order=order)
        self.kv_norm = RmsNorm(build.within("kv_norm"), sizes.kv_rank, NORM_EPS)
        self.kv_b = KeysAndValues(build, heads, sizes)
        self.o = _output(build.within("o"), heads, sizes.value, hidden, bias=bias)

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

    def __init__(self, build: Build, heads: int, sizes: LatentSizes) -> None:
        super().__init__()
        rows, ranks = sizes.nope + sizes.value, build.tensor
        weight = build.parameter(ranks.width(heads) * rows, sizes.kv_rank, padded=ranks.pads(heads))
        part = cut((heads * rows, sizes.kv_rank), 0, _span(build, heads, rows))
        hold(self, "weight", weight, {"": part})


def _span(build: Build, heads: int, width: int) -> tuple[int, int]:
    """This rank's rows or columns of a matrix with so many for each head."""
    first, stop = build.tensor.span(heads)
    return first * width, stop * width


def _halves(first: int, count: int) -> tuple[int, ...]:
    """The places of adjacent pairs, from `first` on, in the order in which one half turns with the other."""
    return (*range(first, first + count, 2), *range(first + 1, first + count, 2))


def _by_heads(build: Build, inputs: int, heads: int, sizes: LatentSizes) -> Linear:
    """Queries. Of a head the checkpoint has the values without a position first."""
    ranks, width = build.tensor, sizes.head
    order = _halves(sizes.nope, sizes.rotary) + tuple(range(sizes.nope))
    part = cut((heads * width, inputs), 0, _span(build, heads, width), order=order)
    return part_linear(build, part, ranks.width(heads) * width, inputs, padded=ranks.pads(heads))


def _whole(build: Build, inputs: int, outputs: int, *, bias: bool, order: tuple[int, ...] | None = None) -> Linear:
    """A linear map that every rank has entirely."""
    return part_linear(build, Part((outputs, inputs), order=order), outputs, inputs, bias=bias)


def _output(build: Build, heads: int, width: int, hidden: int, *, bias: bool) -> Linear:
    """The sum of what the heads' results give; one rank adds the bias."""
    ranks = build.tensor
    part, inputs = cut((hidden, heads * width), 1, _span(build, heads, width)), ranks.width(heads) * width
    return part_linear(build, part, hidden, inputs, bias=bias, padded=ranks.pads(heads), adds_bias=ranks.rank == 0)
