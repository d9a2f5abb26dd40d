"""A step as data: rank 0 encodes its rows into one int32 array, every rank makes the same StepInput of it.

Layout: [B, C, T, top_logits of StepInput], then per row query length, KV length and number of logits (B each), block
tables (B * C), tokens (T).
"""

from __future__ import annotations

import itertools
from collections import abc
from typing import NamedTuple

import numpy as np
import torch

from atb_models.engine.scheduler import Row
from atb_models.ops.step import StepInput

HEADER = 4
Int32 = np.ndarray  # one-dimensional, dtype int32


def encode_step(rows: abc.Sequence[Row], top_logits: int = 0) -> Int32:
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
    header = (len(rows), num_columns, sum(query_lens), top_logits)
    return np.concatenate(
        [
            np.array((*header, *query_lens, *kv_lens, *num_logits), dtype=np.int32),
            table_BC.ravel(),
            np.fromiter(tokens, dtype=np.int32, count=header[2]),
        ]
    )


class HostStep(NamedTuple):
    """A step on the host: what its tensors hold, one after the other in `ints`, and its lists of lengths."""

    ints: Int32
    sizes: list[int]  # of tokens, positions, slots, query starts, KV lengths, logits rows and block table
    query_lens: list[int]
    kv_lens: list[int]
    top_logits: int

    def on(self, ints: torch.Tensor) -> StepInput:
        """The model input whose tensors are parts of `ints`, a copy of this step's."""
        tokens, positions, slots, starts, kv_lens, logits_rows, table = ints.split(self.sizes)
        return StepInput(
            token_ids_T=tokens,
            positions_T=positions,
            slots_T=slots,
            query_starts_B=starts,
            kv_lens_B=kv_lens,
            block_table_BC=table.view(len(self.query_lens), -1),
            query_lens=self.query_lens,
            kv_lens=self.kv_lens,
            logits_rows_L=logits_rows,
            top_logits=self.top_logits,
        )


def decode_step(message: Int32, block_size: int, device: torch.device) -> StepInput:
    """The model input of a step message, moved to `device` in one transfer."""
    step = host_step(message, block_size)
    return step.on(sendable(step.ints, device).to(device, non_blocking=True))


def host_step(message: Int32, block_size: int) -> HostStep:
    batch, columns, num_tokens, top_logits = message[:HEADER].tolist()
    query_B, kv_B, logits_B = message[HEADER : HEADER + 3 * batch].reshape(3, batch)
    table_BC = message[HEADER + 3 * batch :][: batch * columns].reshape(batch, columns)
    row_T = np.repeat(np.arange(batch, dtype=np.int32), query_B)
    positions_T = _last_of_each(kv_B, query_B)
    slots_T = table_BC[row_T, positions_T // block_size] * block_size + positions_T % block_size
    starts_B = np.zeros(batch + 1, dtype=np.int32)
    np.cumsum(query_B, out=starts_B[1:])
    logits_rows_L = _last_of_each(starts_B[1:], logits_B)
    arrays = (message[-num_tokens:], positions_T, slots_T, starts_B, kv_B, logits_rows_L, table_BC.ravel())
    sizes = [a.size for a in arrays]
    return HostStep(np.concatenate(arrays), sizes, query_B.tolist(), kv_B.tolist(), top_logits)


def sendable(ints: Int32, device: torch.device) -> torch.Tensor:
    """On the host, to be copied without waiting for the device: the allocator keeps pinned memory until that is done.

    Memory that is not pinned could be freed, and written by somebody else, before an NPU has read it.
    """
    host = torch.from_numpy(ints)
    return host if device.type == "cpu" else host.pin_memory()


def is_decode(message: Int32) -> bool:
    """Whether every row is one token, and its logits are wanted."""
    batch, _, num_tokens, _ = message[:HEADER].tolist()
    return bool(num_tokens == batch and (message[HEADER + 2 * batch :][:batch] == 1).all())


def padded(message: Int32, rows: int, columns: int, spare: int, block_size: int) -> Int32:
    """A decode message with more rows, and with block tables of `columns` blocks.

    An added row is like one of a sequence within a block that is nobody's: each has a slot of its own there, and sees
    those before it. They fill `spare`, and then the blocks below it.
    """
    batch, width, _, top_logits = message[:HEADER].tolist()
    lens_3B = np.ones((3, rows), dtype=np.int32)
    table_BC = np.zeros((rows, columns), dtype=np.int32)
    tokens_B = np.zeros(rows, dtype=np.int32)
    added = np.arange(rows - batch, dtype=np.int32)
    lens_3B[1, batch:] += added % block_size
    table_BC[batch:, 0] = spare - added // block_size
    lens_3B[:, :batch] = message[HEADER:][: 3 * batch].reshape(3, batch)
    table_BC[:batch, :width] = message[HEADER + 3 * batch :][: batch * width].reshape(batch, width)
    tokens_B[:batch] = message[len(message) - batch :]
    header = np.array((rows, columns, rows, top_logits), dtype=np.int32)
    return np.concatenate([header, lens_3B.ravel(), table_BC.ravel(), tokens_B])


def _last_of_each(stop_B: Int32, count_B: Int32) -> Int32:
    """The `count` numbers before `stop` of every row, concatenated: [stop - count, stop) for each."""
    first_B = np.cumsum(count_B, dtype=np.int32) - count_B
    total = int(count_B.sum())
    return np.arange(total, dtype=np.int32) + np.repeat((stop_B - count_B - first_B).astype(np.int32), count_B)
