"""What bounds a step: the scheduler keeps to it, the plan prices its largest."""

from __future__ import annotations

from dataclasses import dataclass

# What an engine has unless it is asked for something else.
BLOCK_SIZE = 128  # tokens of a KV block; every backend takes this size
PREFILL_TOKENS = 2048  # prompt tokens of a step: enough to use the processor, few enough for decodes not to wait long


@dataclass(frozen=True)
class Limits:
    """What bounds a step: sequences, prompt tokens, length of a sequence; tokens of a KV block.

    max_prompt_logits: prompt tokens whose logits are wanted. More would be faster, and each takes 8 bytes an id.
    graph_capture: decode steps run as captured graphs, which keep memory for themselves.
    """

    max_batch_size: int
    max_prefill_tokens: int
    max_seq_len: int
    block_size: int
    max_prompt_logits: int = 128
    graph_capture: bool = False

    @property
    def full_batch_blocks(self) -> int:
        """KV blocks that hold all sequences at their full length."""
        return self.max_batch_size * -(-self.max_seq_len // self.block_size)


def graph_sizes(most: int, block_size: int) -> list[int]:
    """Batch sizes for which a decode step is captured: 1, 2, 4, 8 ... up to `most`.

    The rows that fill a step up have their slots in one KV block, so sizes are no further apart than its tokens.
    """
    sizes = [1]
    while sizes[-1] < most:
        sizes.append(min(2 * sizes[-1], sizes[-1] + block_size, most))
    return sizes
