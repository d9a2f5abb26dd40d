"""Static scales of activations that several linear maps share because they are one matrix here."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

from torch import Tensor

from atb_models.errors import CheckpointError
from atb_models.models.weights.source import SeenSource, WeightSource


class Agreeing(SeenSource):
    """The tensors of `source`. Those in `together`, of one number each, are equal where they have the same key."""

    def __init__(self, source: WeightSource, together: Mapping[str, Hashable]) -> None:
        super().__init__(source)
        self._together = together
        self._first: dict[Hashable, tuple[str, float]] = {}

    def read_into(self, name: str, dim: int | None, start: int, stop: int, target: Tensor) -> int:
        """Raises CheckpointError for a number that is another than that of a tensor which was read before."""
        found = self.source.read_into(name, dim, start, stop, target)
        if name in self._together:
            value = float(target)
            other, theirs = self._first.setdefault(self._together[name], (name, value))
            if value != theirs:
                raise CheckpointError(
                    f"{self.where(name)}: {name} is {value:g} and {other} is {theirs:g}, but both are of one input,"
                    f" which is quantised once"
                )
        return found
