"""The limits of a step: the scheduler keeps them, and the plan prices the largest step that they allow."""

from __future__ import annotations

from dataclasses import dataclass

# What an engine has unless it is asked for something else.
BLOCK_SIZE = 128  # tokens of a KV block; every backend takes this size
PREFILL_TOKENS = 2048  # prompt tokens of a step: enough to use the processor, few enough for decodes not to wait long


@dataclass(frozen=True)
class Limits:
    """The limits of a step: sequences, prompt tokens, tokens of a sequence; and tokens of a KV block.

    max_prompt_logits: prompt tokens of a step whose logits are computed. Each takes 8 bytes per token id.
    graph_capture: decode steps run as captured graphs, which need memory of their own.
    """

    max_batch_size: int
    max_prefill_tokens: int
    max_seq_len: int
    block_size: int
    max_prompt_logits: int = 128
    graph_capture: bool = False

    @property
    def full_batch_blocks(self) -> int:
        """KV blocks for all sequences at their full length."""
        return self.max_batch_size * -(-self.max_seq_len // self.block_size)


def graph_sizes(most: int, block_size: int) -> list[int]:
    """Batch sizes for which a decode step is captured: 1, 2, 4, 8 ... up to `most`.

    A step is filled up to the next size with rows whose slots are in one KV block, so two sizes differ by at most the
    tokens of a block.
    """
    sizes = [1]
    while sizes[-1] < most:
        sizes.append(min(2 * sizes[-1], sizes[-1] + block_size, most))
    return sizes
