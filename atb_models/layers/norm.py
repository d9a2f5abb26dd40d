"""Root mean square norm."""

from __future__ import annotations

from torch import Tensor, nn

from atb_models import ops
from atb_models.layers.build import Build
from atb_models.layers.parameter import whole
from atb_models.ops.sublayers import Norm


class RmsNorm(nn.Module):
    """RmsNorm alone, or after adding x to the residual stream.

    `bias`: where a quantised checkpoint shifts what its linear maps get, so that it has fewer outliers.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(self, build: Build, hidden: int, eps: float) -> None:
        super().__init__()
        whole(self, "weight", build.parameter(hidden))
        self.register_parameter("bias", None)
        if build.biased("weight", ("",)):
            whole(self, "bias", build.parameter(hidden))
        self.eps = eps

    def forward(self, x_TH: Tensor) -> Tensor:
        return self._shifted(ops.rms_norm(x_TH, self.weight, self.eps))

    def add(self, x_TH: Tensor | None, residual_TH: Tensor) -> tuple[Tensor, Tensor]:
        """(norm of the sum, the sum); without x the residual is the sum."""
        if x_TH is None:
            return self(residual_TH), residual_TH
        normed_TH, sum_TH = ops.add_rms_norm(x_TH, residual_TH, self.weight, self.eps)
        return self._shifted(normed_TH), sum_TH

    def _shifted(self, normed_TH: Tensor) -> Tensor:
        return normed_TH if self.bias is None else ops.add(normed_TH, self.bias)

    def described(self) -> Norm | None:
        """As the operation of a sublayer takes it; None with a bias, which that has no place for."""
        return Norm(self.weight, self.eps) if self.bias is None else None
