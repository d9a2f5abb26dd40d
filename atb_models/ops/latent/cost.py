"""What latent attention computes, and which of its two forms computes less."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LatentShape:
    """The sizes of latent attention on a rank.

    heads: of this rank. nope: values of a query that meet keys without a position. rotary: those that are rotated.
    value: of a head's result. latent: of a token's latent, which every head makes its keys and values of.
    """

    heads: int
    nope: int
    rotary: int
    value: int
    latent: int

    def absorbs(self, queries: int, length: int) -> bool:
        """Whether so many queries of a sequence that is `length` tokens long are computed in the absorbed form: a
        single one always, more where that takes fewer FLOPs."""
        return queries == 1 or self._absorbed(queries, length) <= self._expanded(queries, length)

    def flops(self, queries: int, length: int) -> int:
        """Of the form that is taken."""
        count = self._absorbed if self.absorbs(queries, length) else self._expanded
        return count(queries, length)

    @property
    def _maps(self) -> int:
        """FLOPs of all heads' two maps with one vector: from keys to latents and from latents to values."""
        return 2 * self.heads * self.latent * (self.nope + self.value)

    def _absorbed(self, queries: int, length: int) -> int:
        """Each query takes the map of its keys, each result that of its values; between them is the latent itself."""
        return queries * self._maps + 2 * self.heads * (2 * self.latent + self.rotary) * pairs(queries, length)

    def _expanded(self, queries: int, length: int) -> int:
        """Every token's latent becomes the keys and values of all heads."""
        return length * self._maps + 2 * self.heads * (self.nope + self.rotary + self.value) * pairs(queries, length)


def pairs(queries: int, length: int) -> int:
    """Pairs of one of the newest `queries` of `length` tokens and a token that it sees."""
    return queries * length - queries * (queries - 1) // 2
