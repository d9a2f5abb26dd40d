"""One step's input to a model: a flat batch of tokens from several sequences."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class StepInput:
    """T tokens of B sequences, sequence after sequence. All tensors are int32 on the model's device."""

    token_ids_T: Tensor
    positions_T: Tensor
    slots_T: Tensor  # where each token's key and value go in the cache
    block_table_BC: Tensor  # the cache blocks of each sequence, in order; unused places hold 0
    query_lens: list[int]  # tokens of each sequence in this step
    kv_lens: list[int]  # tokens of each sequence in the cache once this step's are written
    logits_rows_L: Tensor  # the tokens whose logits are wanted
