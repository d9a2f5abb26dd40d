"""A quantised checkpoint in the internal form of scheme.py, unpacked weight by weight while it is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from atb_models.errors import CheckpointError
from atb_models.layers.storage import Storage
from atb_models.models.quantized.packed.presented import Presented, presented
from atb_models.models.quantized.packed.weight import PackedWeight
from atb_models.models.weights.checkpoint import Checkpoint
from atb_models.models.weights.finite import count_not_finite
from atb_models.wording import named


class UnpackingWeights:
    """The tensors of `checkpoint`, with each of `weights` in place of the tensors that it is packed in.

    weights: by their names as floats, `<linear>.weight`. storage: what the scheme says of such a name; where that is
    None, the weight is presented as floats, dequantised. hidden: the checkpoint's tensors that the weights consist of,
    and those that are not used. spare: of the others, those that change nothing.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        weights: Mapping[str, PackedWeight],
        storage: Callable[[str], Storage | None],
        hidden: set[str],
        spare: frozenset[str] = frozenset(),
    ) -> None:
        self._checkpoint = checkpoint
        self._presented: dict[str, Presented] = {}
        for name, weight in weights.items():
            self._presented |= presented(name, weight, storage(name))
        plain = checkpoint.names() - hidden
        if twice := sorted(plain & self._presented.keys()):
            raise CheckpointError(
                f"{checkpoint.where(twice[0])}: tensor {named(twice[:1])} is unexpected, the weight is there in its"
                f" packed form too ({len(twice)} such tensors)"
            )
        self._names = plain | self._presented.keys()
        self._spare = spare

    def names(self) -> set[str]:
        return set(self._names)

    def spare(self) -> frozenset[str]:
        return self._spare

    def shape(self, name: str) -> tuple[int, ...]:
        part = self._presented.get(name)
        return self._checkpoint.shape(name) if part is None else part.shape

    def where(self, name: str) -> str:
        part = self._presented.get(name)
        return self._checkpoint.where(name) if part is None else part.weight.where()

    def read_into(self, name: str, dim: int | None, start: int, stop: int, target: Tensor) -> int:
        """As of any source. Scales and the floats that are made of integers are counted where they are not finite."""
        part = self._presented.get(name)
        if part is None:
            return self._checkpoint.read_into(name, dim, start, stop, target)
        ranges = [range(size) for size in part.shape]
        if dim is not None:
            ranges[dim] = range(start, stop)
        part.fill(target, part.weight, *ranges)
        return count_not_finite(target) if target.is_floating_point() else 0

    def close(self) -> None:
        self._checkpoint.close()
