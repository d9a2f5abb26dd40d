"""One weight of 8-bit floats, and the scales beside it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

import torch

from atb_models.models.quantized.packed.checks import check_there
from atb_models.models.quantized.packed.grid import Grid, grid_size
from atb_models.models.quantized.packed.scaled import PlainNumbers, ScaledWeight
from atb_models.models.quantized.rules import module_of
from atb_models.models.weights.checkpoint import Checkpoint

DTYPE: Final = torch.float8_e4m3fn
SCALES: Final = ("weight_scale_inv", "weight_scale")


def float8_weight(
    checkpoint: Checkpoint, present: Collection[str], name: str, block: tuple[int, int] | None
) -> ScaledWeight:
    """The weight of that name. block: outputs and inputs that share a scale; None: all or those of an output, as the
    shape of the scales says. Raises CheckpointError for scales that are missing or do not fit."""
    module = module_of(name)
    scale = next((scale for part in SCALES if (scale := f"{module}.{part}") in present), None)
    if scale is None:
        scale = f"{module}.{SCALES[1] if block is None else SCALES[0]}"
        check_there(checkpoint, present, scale, name)
    numbers = PlainNumbers(checkpoint, name, DTYPE, 8)
    rows, columns = numbers.shape
    if block is None:
        block = (1 if checkpoint.shape(scale)[:1] == (rows,) else rows, columns)
    return ScaledWeight(checkpoint, numbers, Grid(checkpoint, scale, grid_size(numbers.shape, block)), block)
