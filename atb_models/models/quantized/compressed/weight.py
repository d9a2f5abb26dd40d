"""One linear map as compressed-tensors stores it.

For a weight [O, I]: `weight`, int8 or an 8-bit float [O, I]; or `weight_packed`, int32 [O, ceil(I * bits / 32)], the
first integer of a word in its lowest bits, each plus half their range, with `weight_shape`, [2]. Beside it
`weight_scale` [O, groups], [O, 1], [1] or a number for each block; where not symmetric `weight_zero_point`, of the
same shape in int8, or packed along the outputs; `weight_g_idx` [I], the group of each input; `input_scale` and
`input_zero_point` [1]. weight = (integer - zero point) * scale.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

import torch

from atb_models.models.quantized.compressed.settings import Group
from atb_models.models.quantized.packed.checks import WORDS, check_dtype, check_shape, check_there, wrong
from atb_models.models.quantized.packed.grid import Grid, PackedGrid, grid_size
from atb_models.models.quantized.packed.modules import is_plain
from atb_models.models.quantized.packed.scaled import Numbers, PackedNumbers, PlainNumbers, ScaledWeight
from atb_models.models.weights.checkpoint import Checkpoint

# Ends of the names of what a weight consists of, and of what goes with its inputs.
PARTS: Final = (
    "weight_packed",
    "weight_shape",
    "weight_scale",
    "weight_zero_point",
    "weight_g_idx",
    "input_scale",
    "input_zero_point",
)
_INDICES: Final = (torch.int32, torch.int64)


def compressed_weight(
    checkpoint: Checkpoint, present: Collection[str], module: str, group: Group, *, scattered: bool
) -> ScaledWeight:
    """present: the names of the checkpoint. scattered: groups are those of weight_g_idx, and no runs of inputs.

    Raises CheckpointError for a tensor that is missing or does not fit.
    """

    def name(part: str) -> str:
        return f"{module}.{part}"

    numbers = _numbers(checkpoint, present, module, group)
    check_there(checkpoint, present, name("weight_scale"), numbers.name)
    block = group.block_of(numbers.shape)
    size = grid_size(numbers.shape, block)
    order = name("weight_g_idx")
    if order in present:
        check_dtype(checkpoint, order, _INDICES)
        check_shape(checkpoint, order, numbers.shape[1:], numbers.name)
        if not scattered and not keeps_order(checkpoint, order, block[1]):
            raise wrong(checkpoint, order, "puts inputs into groups out of order, but actorder is not declared group")
    elif group.ordered and group.block[1] is not None:
        check_there(checkpoint, present, order, numbers.name)
    return ScaledWeight(
        checkpoint,
        numbers,
        Grid(checkpoint, name("weight_scale"), size),
        block,
        zeros=_zeros(checkpoint, present, name("weight_zero_point"), size, group, numbers.name),
        subtracts=not group.symmetric,
        order=order if scattered else None,
        inputs=_inputs(checkpoint, present, module, group) if group.activations == "static" else None,
    )


def keeps_order(checkpoint: Checkpoint, name: str, group: int) -> bool:
    """Whether groups are runs of inputs: the tensor says so, or was never filled, which -1 shows."""
    order = checkpoint.read(name)
    return is_plain(order, group) or bool((order == -1).all())


def _numbers(checkpoint: Checkpoint, present: Collection[str], module: str, group: Group) -> Numbers:
    dtype = torch.float8_e4m3fn if group.kind == "float" else torch.int8
    if not group.packed:
        check_there(checkpoint, present, f"{module}.weight", f"{module}.weight_scale")
        return PlainNumbers(checkpoint, f"{module}.weight", dtype, group.bits)
    packed, shape = f"{module}.weight_packed", f"{module}.weight_shape"
    if packed not in present:
        check_there(checkpoint, present, packed, f"{module}.weight_scale")
    check_there(checkpoint, present, shape, packed)
    check_dtype(checkpoint, shape, _INDICES)
    check_shape(checkpoint, shape, (2,), "a matrix")
    rows, columns = checkpoint.read(shape).tolist()
    if rows < 1 or columns < 1:
        raise wrong(checkpoint, shape, f"is {[rows, columns]}, but must be the shape of a matrix")
    return PackedNumbers(checkpoint, packed, (rows, columns), group.bits)


def _zeros(
    checkpoint: Checkpoint, present: Collection[str], name: str, size: tuple[int, int], group: Group, beside: str
) -> Grid | PackedGrid | None:
    if name not in present:
        if not group.symmetric:
            check_there(checkpoint, present, name, beside)
        return None
    if group.packed and checkpoint.dtype(name) in WORDS:
        return PackedGrid(checkpoint, name, size, group.bits)
    return Grid(checkpoint, name, size, (torch.int8,))


def _inputs(checkpoint: Checkpoint, present: Collection[str], module: str, group: Group) -> tuple[str, str]:
    scale, zero = f"{module}.input_scale", f"{module}.input_zero_point"
    check_there(checkpoint, present, scale, f"{module}.weight_scale")
    Grid(checkpoint, scale, (1, 1))
    if group.zero_input:
        check_there(checkpoint, present, zero, scale)
    elif zero not in present:
        return scale, ""
    Grid(checkpoint, zero, (1, 1), (torch.int8,))
    if not group.zero_input and checkpoint.read(zero).count_nonzero():
        raise wrong(checkpoint, zero, "is not 0, although input_activations are declared symmetric")
    return scale, zero
