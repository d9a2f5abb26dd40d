"""What is measured, and what a machine can do at most of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

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
    """Parameters of a Qwen-MoE model by the config.json's fields, and from them bytes and FLOPs."""

    config: dict[str, Any]

    @property
    def expert(self) -> int:
        """Parameters of one routed expert."""
        return 3 * self.config["hidden_size"] * self.config["moe_intermediate_size"]

    @property
    def layer(self) -> int:
        """Parameters of a layer that each token uses, without the routed experts."""
        config, hidden = self.config, self.config["hidden_size"]
        kv = hidden * config["num_key_value_heads"] // config["num_attention_heads"]
        shared = 3 * hidden * config["shared_expert_intermediate_size"] + hidden
        return 2 * hidden * hidden + 2 * hidden * kv + shared + hidden * config["num_experts"]

    @property
    def head(self) -> int:
        return int(self.config["hidden_size"] * self.config["vocab_size"])

    def prefill_flops(self, case: Case) -> float:
        """Products of all layers and of the head for the last token; attention to the tokens before each."""
        layers, tokens, top_k = self.config["num_hidden_layers"], case.prompt, self.config["num_experts_per_tok"]
        attention = 4 * self.config["hidden_size"] * tokens * (tokens + 1) / 2
        return layers * (2 * tokens * (self.layer + top_k * self.expert) + attention) + 2 * self.head

    def decode_bytes(self, case: Case, element: float) -> float:
        """Bytes of weights and KV cache that the middle step must read, with `element` bytes a parameter.

        Rows that choose k of E experts at random touch E (1 - (1 - k/E)^rows) of them.
        """
        config, layers, rows = self.config, self.config["num_hidden_layers"], case.sequences
        experts = config["num_experts"]
        touched = experts * (1 - (1 - config["num_experts_per_tok"] / experts) ** rows)
        kv_width = config["hidden_size"] * config["num_key_value_heads"] // config["num_attention_heads"]
        cache = 2 * 2 * kv_width * rows * (case.prompt + case.new / 2)  # K and V of 16 bits
        return layers * (element * (self.layer + touched * self.expert) + cache) + element * self.head

    def limit(self, case: Case, element: float, read: float, flops: float) -> float:
        """Tokens per second at the read rate `read` (decode; bytes per second) or at `flops` (prefill; per second)."""
        if case.is_prefill:
            return case.tokens * flops / self.prefill_flops(case)
        return case.sequences * read / self.decode_bytes(case, element)
