"""Root mean square norm."""

from __future__ import annotations

from torch import Tensor, nn

from atb_models import ops
from atb_models.layers.build import Build
from atb_models.layers.parameter import whole


class RmsNorm(nn.Module):
    """RmsNorm alone, or after adding x to the residual stream."""

    weight: nn.Parameter

    def __init__(self, build: Build, hidden: int, eps: float) -> None:
        super().__init__()
        whole(self, "weight", build.parameter(hidden))
        self.eps = eps

    def forward(self, x_TH: Tensor) -> Tensor:
        return ops.rms_norm(x_TH, self.weight, self.eps)

    def add(self, x_TH: Tensor, residual_TH: Tensor) -> tuple[Tensor, Tensor]:
        """(norm of the sum, the sum)."""
        return ops.add_rms_norm(x_TH, residual_TH, self.weight, self.eps)
