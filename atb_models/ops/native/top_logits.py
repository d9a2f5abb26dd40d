"""TopLogits by the library. Rows may lie anywhere, their elements side by side."""

from __future__ import annotations

from ctypes import byref

import torch
from torch import Tensor

from atb_models.ops.native.checks import dense, on_cpu, refuse
from atb_models.ops.native.library import Library, threads
from atb_models.ops.native.linear import FLOATS
from atb_models.ops.native.structs import FORMATS, TopLogitsCall


def top_logits(library: Library, logits_LW: Tensor, count: int, first: int) -> Tensor:
    """The keys of the `count` greatest finite logits of each row and a count -> [L, count + 1] int64, see the table.

    Raises ValueError.
    """
    on_cpu("TopLogits", logits_LW)
    dense("TopLogits", logits_LW)
    rows, width = logits_LW.shape
    if logits_LW.dtype not in FLOATS or count < 1 or not 0 <= first < 2**31 - width:
        raise ValueError(f"TopLogits: {count} of {width} logits of {logits_LW.dtype}, the first with id {first}")
    out = torch.empty(rows, count + 1, dtype=torch.int64)
    call = TopLogitsCall(
        logits_LW.data_ptr(),
        out.data_ptr(),
        logits_LW.stride(0),
        rows,
        width,
        count,
        first,
        FORMATS[logits_LW.dtype],
        threads(),
    )
    refuse(library.top_logits(byref(call)), "TopLogits")
    return out
