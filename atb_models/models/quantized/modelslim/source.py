"""ModelSlim's weights in the internal form, see scheme.py of the folder above."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from atb_models.models.quantized.modelslim.linears import StoredLinear
from atb_models.models.quantized.modelslim.views import FloatBits, FourBits, Pairs, Positive, View, Zeros
from atb_models.models.weights.checkpoint import Checkpoint


class ModelSlimWeights:
    """A source of weights: the linear maps as integers, and the float tensors `floats`, name -> stored name.

    zero_biases: names of biases whose values are all zero.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        linears: Mapping[str, StoredLinear],
        floats: Mapping[str, str],
        zero_biases: frozenset[str],
    ) -> None:
        self._checkpoint = checkpoint
        self._views = {name: View(checkpoint, stored, checkpoint.shape(stored)) for name, stored in floats.items()}
        self._spare = zero_biases & floats.keys()
        names = checkpoint.names()
        for linear in linears.values():
            self._views.update(_views(checkpoint, linear, names))

    def names(self) -> set[str]:
        return set(self._views)

    def spare(self) -> frozenset[str]:
        return self._spare

    def shape(self, name: str) -> tuple[int, ...]:
        return self._views[name].shape

    def where(self, name: str) -> str:
        return self._checkpoint.where(self._views[name].name if name in self._views else name)

    def read_into(self, name: str, dim: int | None, start: int, stop: int, target: Tensor) -> int:
        return self._views[name].read_into(dim, start, stop, target)

    def close(self) -> None:
        self._checkpoint.close()


def _views(checkpoint: Checkpoint, linear: StoredLinear, names: set[str]) -> dict[str, View]:
    """The tensors of one quantised linear map. names: of all tensors."""
    stem, storage = linear.stem, linear.storage
    weight, scale, offset = f"{stem}.weight", f"{stem}.weight_scale", f"{stem}.weight_offset"
    if storage.activations == "static":
        stored = f"{stem}.deq_scale"
        bits = FloatBits if not checkpoint.dtype(stored).is_floating_point else View
        return {
            weight: View(checkpoint, weight, linear.shape),
            scale: bits(checkpoint, stored, linear.scale_shape),
            f"{stem}.input_scale": Positive(checkpoint, f"{stem}.input_scale", (1,)),
            f"{stem}.input_offset": View(checkpoint, f"{stem}.input_offset", (1,)),
            f"{stem}.quant_bias": View(checkpoint, f"{stem}.quant_bias", linear.shape[:1]),
        }
    if linear.packing != "none":
        integers: View = Pairs(checkpoint, weight, linear.shape, linear.packing)
    else:
        integers = (FourBits if storage.bits == 4 else View)(checkpoint, weight, linear.shape)
    views = {weight: integers, scale: View(checkpoint, scale, linear.scale_shape)}
    if storage.offset:
        views[offset] = (View if offset in names else Zeros)(
            checkpoint, offset if offset in names else scale, linear.scale_shape
        )
    return views
