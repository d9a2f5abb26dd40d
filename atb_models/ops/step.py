"""One step's input to a model: a flat batch of tokens from several sequences."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class StepInput:
    """T tokens of B sequences, sequence after sequence. All tensors are int32 on the model's device.

    Attention's lengths are here twice: as numbers of the host, which torch's functions and costs take, and on the
    device, where kernels read them without waiting for the host.
    """

    token_ids_T: Tensor
    positions_T: Tensor
    slots_T: Tensor  # where each token's planes go in the cache
    query_starts_B: Tensor  # [B + 1]: the first token of each sequence, and T
    kv_lens_B: Tensor  # `kv_lens`
    block_table_BC: Tensor  # the cache blocks of each sequence, in order; unused places hold 0
    logits_rows_L: Tensor  # the tokens whose logits are wanted, in ascending order
    query_lens: list[int]  # tokens of each sequence in this step
    kv_lens: list[int]  # tokens of each sequence in the cache once this step's are written
    top_logits: int = 0  # how many of the greatest logits of each row are wanted; 0: all logits
    bound: dict[str, Any] = field(default_factory=dict, init=False, compare=False, repr=False)
    """What the backend makes of the step for its first layer and keeps for the others, or keeps from one operation of a
    layer for its next."""

    @property
    def wants_all_logits(self) -> bool:
        """Whether the logits of each token are wanted, as in a step that only decodes."""
        return self.logits_rows_L.shape == self.token_ids_T.shape

    @cached_property
    def query_ends(self) -> list[int]:
        """Running totals of `query_lens`: for each sequence the token after its last."""
        return list(accumulate(self.query_lens))
