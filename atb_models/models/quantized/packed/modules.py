"""Linear maps whose weights lie in qweight, scales and qzeros, as GPTQ and AWQ pack them: what the files hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from atb_models.models.quantized.rules import WEIGHT, tell_of_floats
from atb_models.models.quantized.scheme import Scheme

if TYPE_CHECKING:
    from torch import Tensor

    from atb_models.models.quantized.packed.source import UnpackingWeights
    from atb_models.models.quantized.packed.weight import PackedWeight
    from atb_models.models.weights.checkpoint import Checkpoint

PARTS: Final = (".qweight", ".qzeros", ".scales", ".g_idx")


@dataclass(frozen=True)
class PackedModules:
    """Linear maps by name. every: those with packed weights. biased: of them, those with a bias that is not zero.
    scattered: those with groups that are no runs of inputs."""

    every: frozenset[str]
    biased: frozenset[str]
    scattered: frozenset[str]


def find_packed(folder: Path, ordered: Callable[[str], int | None] = lambda module: None) -> PackedModules | None:
    """What the files have; None where the folder holds no weights.

    ordered: of a linear map whose inputs may be in any group, the inputs in one; None of others. Only biases and orders
    of inputs are read. Raises CheckpointError for files that are damaged.
    """
    from atb_models.models.quantized.packed.checks import FLOATS, check_dtype
    from atb_models.models.weights.checkpoint import has_weights, open_checkpoint

    if not has_weights(folder):
        return None
    with open_checkpoint(folder, quantized=True, log=False) as checkpoint:
        names = checkpoint.names()
        every = packed_modules(names)
        biased, scattered = set(), set()
        for module in every:
            bias, order = f"{module}.bias", f"{module}.g_idx"
            if bias in names:
                check_dtype(checkpoint, bias, FLOATS)
                biased |= {module} if checkpoint.read(bias).count_nonzero() else set()
            if order in names and (group := ordered(module)) and not is_plain(checkpoint.read(order), group):
                scattered.add(module)
    return PackedModules(every, frozenset(biased), frozenset(scattered))


def packed_modules(names: set[str]) -> frozenset[str]:
    """The linear maps that have any tensor of a packed weight."""
    return frozenset(name.rpartition(".")[0] for name in names if name.endswith(PARTS))


def open_packed(
    checkpoint: Checkpoint, scheme: Scheme, place: str, weight_of: Callable[[set[str], str], PackedWeight]
) -> UnpackingWeights:
    """The internal form of a checkpoint with packed linear maps.

    place: of the declaration, for messages. weight_of: makes the weight of a linear map; its arguments are the names of
    all tensors, and the linear map's.
    """
    from atb_models.models.quantized.packed.source import UnpackingWeights

    present = checkpoint.names()
    modules = sorted(packed_modules(present))
    weights = {f"{module}{WEIGHT}": weight_of(present, module) for module in modules}
    tell_of_floats(place, weights)
    hidden = {f"{module}{part}" for module in modules for part in PARTS}
    zeros = {f"{module}.bias" for module in modules if not scheme.has_bias(f"{module}{WEIGHT}")}
    return UnpackingWeights(checkpoint, weights, scheme.storage, hidden, frozenset(zeros & present))


def is_plain(order: Tensor, group: int) -> bool:
    """Whether input k is in group k // group, for all k."""
    import torch

    return torch.equal(order.long(), torch.arange(len(order)) // group)
