"""A step as data: rank 0 encodes its rows into one int32 array, every rank makes the same StepInput of it.

Layout: [B, C, T], then per row query length, KV length and number of logits (B each), block tables (B * C), tokens (T).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence as Rows

import numpy as np
import torch

from atb_models.engine.scheduler import Row
from atb_models.layers.step import StepInput

HEADER = 3
Int32 = np.ndarray  # one-dimensional, dtype int32


def encode_step(rows: Rows[Row]) -> Int32:
    """The step message of scheduled rows."""
    query_lens = [row.num_tokens for row in rows]
    kv_lens = [row.seq.num_computed_tokens + row.num_tokens for row in rows]
    num_logits = [row.num_logits for row in rows]
    tables = [row.seq.block_table for row in rows]
    num_columns = max(map(len, tables))
    table_BC = np.zeros((len(rows), num_columns), dtype=np.int32)
    for table, blocks in zip(table_BC, tables, strict=True):
        table[: len(blocks)] = blocks
    tokens = itertools.chain.from_iterable(
        row.seq.token_ids[stop - row.num_tokens : stop] for row, stop in zip(rows, kv_lens, strict=True)
    )
    header = (len(rows), num_columns, sum(query_lens))
    return np.concatenate(
        [
            np.array((*header, *query_lens, *kv_lens, *num_logits), dtype=np.int32),
            table_BC.ravel(),
            np.fromiter(tokens, dtype=np.int32, count=header[2]),
        ]
    )


def decode_step(message: Int32, block_size: int, device: torch.device) -> StepInput:
    """The model input of a step message, moved to `device` in one transfer."""
    batch, columns, num_tokens = message[:HEADER].tolist()
    query_B, kv_B, logits_B = message[HEADER : HEADER + 3 * batch].reshape(3, batch)
    table_BC = message[HEADER + 3 * batch :][: batch * columns].reshape(batch, columns)
    row_T = np.repeat(np.arange(batch, dtype=np.int32), query_B)
    positions_T = _last_of_each(kv_B, query_B)
    slots_T = table_BC[row_T, positions_T // block_size] * block_size + positions_T % block_size
    logits_rows_L = _last_of_each(np.cumsum(query_B, dtype=np.int32), logits_B)
    arrays = (message[-num_tokens:], positions_T, slots_T, logits_rows_L, table_BC.ravel())
    on_device = _moved(torch.from_numpy(np.concatenate(arrays)), device)
    tokens, positions, slots, logits_rows, table = on_device.split([a.size for a in arrays])
    return StepInput(
        token_ids_T=tokens,
        positions_T=positions,
        slots_T=slots,
        block_table_BC=table.view(batch, columns),
        query_lens=query_B.tolist(),
        kv_lens=kv_B.tolist(),
        logits_rows_L=logits_rows,
    )


def _moved(host: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Without waiting for the device: the allocator keeps pinned memory until the copy out of it is done.

    Memory that is not pinned could be freed, and written by somebody else, before an NPU has read it.
    """
    return host if device.type == "cpu" else host.pin_memory().to(device, non_blocking=True)


def _last_of_each(stop_B: Int32, count_B: Int32) -> Int32:
    """The `count` numbers before `stop` of every row, concatenated: [stop - count, stop) for each."""
    first_B = np.cumsum(count_B, dtype=np.int32) - count_B
    total = int(count_B.sum())
    return np.arange(total, dtype=np.int32) + np.repeat((stop_B - count_B - first_B).astype(np.int32), count_B)
