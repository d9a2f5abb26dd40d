"""What a quantised checkpoint says about its tensors, whatever its format. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from atb_models.layers.storage import Storage

if TYPE_CHECKING:
    from atb_models.models.weights.checkpoint import Checkpoint
    from atb_models.models.weights.source import WeightSource

FLOATS = "float"  # the method of a checkpoint in a quantised format whose tensors are all floats
_LAYER = re.compile(r"(?<=model\.layers\.)\d+")


class Scheme(Protocol):
    """How the tensors of a checkpoint are stored.

    A linear map's weight goes by the name that it would have as floats, `<linear>.weight`, and by torch's shape [O, I].
    """

    @property
    def name(self) -> str:
        """For messages: the format, and how many bits."""

    @property
    def method(self) -> str:
        """MindIE's word for it, which names folders of results: w8a8, w8a8_dynamic, w8a16, w4a16 ..., or FLOATS."""

    def storage(self, weight: str) -> Storage | None:
        """Of the weight of a linear map within a layer; None: floats."""

    def has_bias(self, weight: str) -> bool:
        """Whether the linear map or the norm of that weight has a bias which config.json does not tell of.

        With static activations: any bias of floats, beside quant_bias. One that quant_bias holds does not count.
        """

    def open(self, checkpoint: Checkpoint) -> WeightSource:
        """The checkpoint in the internal form.

        For a weight with a storage: `<linear>.weight` int8 [O, I] (4 bits: one value of -8 .. 7 in each);
        `<linear>.weight_scale` float32 [O], or [O, ceil(I / group)]; `<linear>.weight_offset`, alike, where the storage
        has offsets. With static activations the scale is that of the sums, and there are `<linear>.input_scale` and
        `<linear>.input_offset`, float32 [1], and `<linear>.quant_bias`, int32 [O], which holds the float bias too,
        unless `has_bias` says that there is one.
        All other tensors are floats under the names of a checkpoint of floats.
        """


@dataclass(frozen=True)
class ChosenLayers:
    """A scheme of a model that has some layers of `whole` alone: the n-th is that of number layers[n]."""

    whole: Scheme
    layers: Sequence[int]

    @property
    def name(self) -> str:
        return self.whole.name

    @property
    def method(self) -> str:
        return self.whole.method

    def storage(self, weight: str) -> Storage | None:
        return self.whole.storage(self._theirs(weight))

    def has_bias(self, weight: str) -> bool:
        return self.whole.has_bias(self._theirs(weight))

    def open(self, checkpoint: Checkpoint) -> WeightSource:
        raise NotImplementedError("a model with chosen layers is for plans; it reads no weights")

    def _theirs(self, weight: str) -> str:
        return _LAYER.sub(lambda number: str(self.layers[int(number[0])]), weight, count=1)
