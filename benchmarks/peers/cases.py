"""What is measured, and what a machine can do at most of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from peers.shapes import Dimensions

CONTEXT = 64  # tokens of each sequence before its decoding is timed
NEW = 32  # tokens of each sequence whose decoding is timed


@dataclass(frozen=True)
class Case:
    """A prompt of so many tokens for each sequence, then `new` tokens of each; only one of both is timed."""

    sequences: int
    prompt: int
    new: int

    @property
    def is_prefill(self) -> bool:
        return self.new == 0

    @property
    def tokens(self) -> int:
        """Of all sequences, timed."""
        return self.sequences * (self.prompt if self.is_prefill else self.new)

    @property
    def name(self) -> str:
        return f"prefill of {self.prompt}" if self.is_prefill else f"decode of {self.sequences}"


CASES = (Case(1, 256, 0), Case(1, 1024, 0), Case(1, CONTEXT, NEW), Case(8, CONTEXT, NEW))
LONGEST = 2048  # tokens that a sequence of any case has room for


@dataclass(frozen=True)
class Work:
    """Parameters of a model by the config.json's fields, and from them bytes and FLOPs."""

    config: dict[str, Any]

    @property
    def sizes(self) -> Dimensions:
        return Dimensions.of(self.config)

    @property
    def expert(self) -> int:
        """Parameters of one routed expert."""
        return 3 * self.sizes.hidden * self.sizes.width

    @property
    def maps(self) -> int:
        """Parameters of the linear maps that each token uses, of all layers, without the routed experts."""
        sizes = self.sizes
        attention = 2 * sizes.hidden * (sizes.hidden + sizes.kv_width)
        feed_forward = sizes.dense_layers * sizes.dense_width + self.moe_layers * sizes.shared
        return sizes.layers * attention + 3 * sizes.hidden * feed_forward

    @property
    def routers(self) -> int:
        """Parameters of the routers, and of the gates of the shared experts, of all layers."""
        return self.moe_layers * self.sizes.hidden * (self.sizes.experts + (not self.sizes.is_deepseek))

    @property
    def moe_layers(self) -> int:
        return self.sizes.layers - self.sizes.dense_layers

    @property
    def head(self) -> int:
        return self.sizes.hidden * self.sizes.vocab

    def prefill_flops(self, case: Case) -> float:
        """Products of all layers and of the head for the last token; attention to the tokens before each."""
        sizes, tokens = self.sizes, case.prompt
        attention = sizes.layers * 4 * sizes.hidden * tokens * (tokens + 1) / 2
        used = self.maps + self.routers + self.moe_layers * sizes.top_k * self.expert
        return 2 * tokens * used + attention + 2 * self.head

    def decode_bytes(self, case: Case, element: float) -> float:
        """Bytes of weights and KV cache that the middle step must read, with `element` bytes a weight of linear maps.

        Routers and head have 2 bytes, as the cache has. Rows that choose k of E experts at random touch
        E (1 - (1 - k/E)^rows) of them.
        """
        sizes, rows = self.sizes, case.sequences
        touched = sizes.experts * (1 - (1 - sizes.top_k / sizes.experts) ** rows)
        cache = sizes.layers * 2 * sizes.kv_width * rows * (case.prompt + case.new / 2)
        return element * (self.maps + self.moe_layers * touched * self.expert) + 2 * (self.routers + self.head + cache)

    def limit(self, case: Case, element: float, read: float, flops: float) -> float:
        """Tokens per second at the read rate `read` (decode; bytes per second) or at `flops` (prefill; per second)."""
        if case.is_prefill:
            return case.tokens * flops / self.prefill_flops(case)
        return case.sequences * read / self.decode_bytes(case, element)
