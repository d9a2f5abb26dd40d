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
    ints = [len(rows), num_columns, sum(query_lens), top_logits, *query_lens, *kv_lens, *num_logits]
    for table in tables:
        ints += table
        ints += [0] * (num_columns - len(table))
    for row, stop in zip(rows, kv_lens, strict=True):
        ints += row.seq.token_ids[stop - row.num_tokens : stop]
    return np.array(ints, dtype=np.int32)


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
    """By lists, not by arrays: for a few rows they are several times as fast."""
    batch, columns, _, top_logits = message[:HEADER].tolist()
    table_starts, tokens_start = HEADER + 3 * batch, HEADER + (3 + columns) * batch
    lens: list[int] = message[HEADER:table_starts].tolist()
    query_lens, kv_lens, num_logits = lens[:batch], lens[batch : 2 * batch], lens[2 * batch :]
    positions: list[int] = []
    slots: list[int] = []
    logits_rows: list[int] = []
    starts = [0]
    for row, (count, stop, wanted) in enumerate(zip(query_lens, kv_lens, num_logits, strict=True)):
        first, table = stop - count, table_starts + row * columns
        positions += range(first, stop)
        for block in range(first // block_size, -(-stop // block_size)):
            start = block * block_size
            offset = message.item(table + block) * block_size - start
            slots += range(max(first, start) + offset, min(stop, start + block_size) + offset)
        starts.append(starts[-1] + count)
        logits_rows += range(starts[-1] - wanted, starts[-1])
    lists = positions, slots, starts, kv_lens, logits_rows
    together = np.array(list(itertools.chain(*lists)), dtype=np.int32)
    ints = np.concatenate((message[tokens_start:], together, message[table_starts:tokens_start]))
    sizes = [len(message) - tokens_start, *map(len, lists), columns * batch]
    return HostStep(ints, sizes, query_lens, kv_lens, top_logits)


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
