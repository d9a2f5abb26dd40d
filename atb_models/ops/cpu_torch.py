"""A CPU without the native library: half-precision products, which torch leaves far from memory bandwidth.

Measured on one core of a 2-core AMD EPYC (AVX-512, bf16 dot products, no fp16 arithmetic) with a [2816, 2048] weight:
one bfloat16 row takes 0.95 ms through oneDNN and 0.50 ms through torch's own matrix-vector product (22 GB/s);
16 float16 rows take 8.4 ms row by row, as torch does it, and 4.7 ms when the weight is widened to float32 once.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from threading import RLock
from typing import Any

import torch
from torch import Tensor

from atb_models.ops import basic, moe
from atb_models.ops.table import Backend
from atb_models.ops.weight import Weight

# From this many rows on, widening the weight beats torch's float16 product.
WIDEN_ROWS = 8
# Elements of a weight widened at a time: 8 MiB of float32, which stays in the last-level cache.
WIDEN_ELEMENTS = 1 << 21
# Held by whichever thread multiplies in bfloat16: oneDNN's switch is the process's, and a product of one row turns it
# off. A product of many rows that another thread began meanwhile would be many times slower and round differently.
ONEDNN_SWITCH = RLock()
# A fork waits for the product, so that its child finds the switch as it was and nobody who holds it.
os.register_at_fork(
    before=ONEDNN_SWITCH.acquire, after_in_parent=ONEDNN_SWITCH.release, after_in_child=ONEDNN_SWITCH.release
)


def linear(x_TI: Tensor, weight_OI: Weight, bias_O: Tensor | None = None) -> Tensor:
    if not _has_better(x_TI):
        with _turn(x_TI):
            return basic.linear.reference(x_TI, weight_OI, bias_O)
    y_TO = x_TI.new_empty(x_TI.shape[0], weight_OI.shape[0])
    _multiply(x_TI, weight_OI.dequantized(x_TI.dtype), y_TO)
    return y_TO if bias_O is None else y_TO.add_(bias_O)


def grouped_matmul(x_RI: Tensor, weight_EOI: Weight, counts_E: Tensor, top_k: int) -> Tensor:
    y_RO = x_RI.new_empty(x_RI.shape[0], weight_EOI.shape[1])
    for expert, start, stop in moe.expert_spans(counts_E):
        _multiply(x_RI[start:stop], weight_EOI.dequantized(x_RI.dtype, expert), y_RO[start:stop])
    return y_RO


def _grouped_matmul_shape(x_RI: Tensor, weight_EOI: Weight, counts_E: Tensor, top_k: int) -> Tensor:
    """The definition's, with the workspace of the widened product where one expert gets every token."""
    rule = moe.grouped_matmul.reference_shape
    assert rule is not None
    y_RO = rule(x_RI, weight_EOI, counts_E, top_k)
    tokens = slice(0, x_RI.shape[0] // top_k)
    _multiply(x_RI[tokens], weight_EOI.dequantized(x_RI.dtype, 0), y_RO[tokens])
    return y_RO


def _has_better(x_TI: Tensor) -> bool:
    rows = x_TI.shape[0]
    return (x_TI.dtype == torch.float16 and rows >= WIDEN_ROWS) or (x_TI.dtype == torch.bfloat16 and rows == 1)


def _turn(x_TI: Tensor) -> AbstractContextManager[object]:
    """What a product of these rows holds while it runs."""
    return ONEDNN_SWITCH if x_TI.dtype == torch.bfloat16 else nullcontext()


def _multiply(x_TI: Tensor, weight_OI: Tensor, out_TO: Tensor) -> None:
    if not _has_better(x_TI):
        with _turn(x_TI):
            torch.mm(x_TI, weight_OI.t(), out=out_TO)
    elif x_TI.dtype == torch.bfloat16:
        _multiply_row(x_TI, weight_OI, out_TO)
    else:
        _multiply_widened(x_TI.float(), weight_OI, out_TO)


def _multiply_row(x_TI: Tensor, weight_OI: Tensor, out_TO: Tensor) -> None:
    """With oneDNN out of the way torch takes its own matrix-vector product, which accumulates in float32.

    No other way of calling torch avoids oneDNN: mv, addmv, bmm and linear look at the same switch.
    """
    onednn: Any = torch.backends.mkldnn
    with ONEDNN_SWITCH:
        enabled = onednn.enabled
        onednn.enabled = False
        try:
            torch.mm(x_TI, weight_OI.t(), out=out_TO)
        finally:
            onednn.enabled = enabled


def _multiply_widened(x_TI: Tensor, weight_OI: Tensor, out_TO: Tensor) -> None:
    """In float32 over bands of output features; the result is rounded once."""
    band = max(1, WIDEN_ELEMENTS // weight_OI.shape[1])
    for start in range(0, weight_OI.shape[0], band):
        out_TO[:, start : start + band] = torch.mm(x_TI, weight_OI[start : start + band].float().t())


BACKEND = Backend(
    bodies={"Linear": linear, "GroupedMatmul": grouped_matmul}, shapes={"GroupedMatmul": _grouped_matmul_shape}
)
