"""The step message: what rank 0 encodes is what every rank's model input says."""

from __future__ import annotations

import numpy as np
import torch

from atb_models.engine.message import decode_step, encode_step
from atb_models.engine.scheduler import Row
from atb_models.engine.sequence import Sequence
from atb_models.sampling_params import SamplingParams

SIZE = 4


def row(tokens: list[int], blocks: list[int], computed: int, count: int, *, want_all: bool = False) -> Row:
    seq = Sequence(tokens, SamplingParams(max_tokens=1), want_prompt_logits=want_all)
    seq.block_table, seq.num_computed_tokens = blocks, computed
    return Row(seq, count, computed + count == len(tokens))


def test_rows_of_every_kind() -> None:
    rows = [
        row([10, 11, 12, 13, 14], [7, 2], 4, 1),  # decode
        row([20, 21, 22], [5], 0, 3),  # a whole prompt
        row([30, 31, 32, 33, 34, 35, 36], [1, 9], 2, 3),  # a middle chunk
        row([40, 41, 42, 43, 44, 45], [0, 3], 3, 2, want_all=True),  # a chunk that wants all its logits
    ]
    message = encode_step(rows, 64)
    assert message.dtype == np.int32 and message.ndim == 1
    step = decode_step(message, SIZE, torch.device("cpu"))
    assert step.token_ids_T.tolist() == [14, 20, 21, 22, 32, 33, 34, 43, 44]
    assert step.positions_T.tolist() == [4, 0, 1, 2, 2, 3, 4, 3, 4]
    assert step.slots_T.tolist() == [8, 20, 21, 22, 6, 7, 36, 3, 12]
    assert step.block_table_BC.tolist() == [[7, 2], [5, 0], [1, 9], [0, 3]]
    assert (step.query_lens, step.kv_lens) == ([1, 3, 3, 2], [5, 3, 5, 5])
    assert (step.query_starts_B.tolist(), step.kv_lens_B.tolist()) == ([0, 1, 4, 7, 9], [5, 3, 5, 5])
    assert step.query_ends == [1, 4, 7, 9]
    assert step.logits_rows_L.tolist() == [0, 3, 7, 8] and step.top_logits == 64
    assert {value.dtype for value in vars(step).values() if isinstance(value, torch.Tensor)} == {torch.int32}


def test_a_step_without_logits() -> None:
    step = decode_step(encode_step([row([1, 2, 3], [0], 0, 2)]), SIZE, torch.device("cpu"))
    assert step.logits_rows_L.tolist() == [] and step.top_logits == 0
