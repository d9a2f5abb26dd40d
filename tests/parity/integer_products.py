"""Linear maps with int8 activations in float64, as weights that the plain implementation multiplies with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tests.models.quantized.modelslim.writer import Written

# Two runs agree when at most so many positions are further apart than FAR, and the median of all is at most MEDIAN: an
# activation that lies between two integers is rounded to either by noise, and moves the logits from there on.
MEDIAN, FAR, FEW = 1e-3, 0.03, 0.2


@dataclass
class IntegerWeight:
    """Stands for a weight in `plain_logits`, which only asks for x @ weight.t()."""

    product: Callable[[Tensor], Tensor]

    def double(self) -> IntegerWeight:
        return self

    def t(self) -> IntegerWeight:
        return self

    @classmethod
    def __torch_function__(cls, func: Callable[..., Any], types: Any, args: Any, kwargs: Any = None) -> Tensor:
        x, weight = args
        return weight.product(x)


def dynamic(numbers: Tensor, scale: Tensor) -> IntegerWeight:
    """A scale for each row of x, its largest magnitude / 127."""

    def product(x: Tensor) -> Tensor:
        own = x.abs().amax(-1, keepdim=True) / 127
        own = torch.where(own == 0, 1.0, own)
        return (torch.round(x / own) @ numbers.double().t()) * own * scale.double()

    return IntegerWeight(product)


def static(numbers: Tensor, scale: Tensor, bias: Tensor, input_scale: float, input_offset: float) -> IntegerWeight:
    """One scale and one offset for all of x; the bias is of integers, the scale that of the sums."""

    def product(x: Tensor) -> Tensor:
        x8 = torch.round(x / input_scale + input_offset).clamp(-128, 127)
        return (x8 @ numbers.double().t() + bias.double()) * scale.double()

    return IntegerWeight(product)


def integer_tensors(written: Written) -> dict[str, Any]:
    """The tensors of a float checkpoint, weights of W8A8 types as their integer products.

    A float bias beside a static weight is left out: quant_bias holds it. deq_scale int64: float32 bits in the low word.
    """
    tensors: dict[str, Any] = dict(written.floats)
    for name, kind in written.types.items():
        stem, stored = name.removesuffix(".weight"), written.tensors
        if not name.endswith(".weight") or kind not in ("W8A8", "W8A8_DYNAMIC", "W8A8_MIX"):
            continue
        if kind == "W8A8":
            given = float(stored[f"{stem}.input_scale"]), float(stored[f"{stem}.input_offset"])
            scale = stored[f"{stem}.deq_scale"]
            scale = scale if scale.is_floating_point() else scale.view(torch.int32)[::2].view(torch.float32)
            tensors[name] = static(stored[name], scale, stored[f"{stem}.quant_bias"], *given)
            tensors.pop(f"{stem}.bias", None)
        else:
            tensors[name] = dynamic(stored[name], stored[f"{stem}.weight_scale"].float().flatten())
    return tensors


def check_agreement(ours: Tensor, exact: Tensor) -> None:
    """[T, V] each: logits at the positions of a text."""
    apart = (ours - exact).abs().mean(dim=1)
    far = (apart > FAR).double().mean().item()
    assert apart.median() <= MEDIAN, f"the median of the mean differences is {apart.median():.1e}"
    assert far <= FEW, f"{far:.0%} of the positions are further apart than {FAR}"
