"""How the weights of a GPTQ checkpoint are stored. Importing it and reading a declaration need no torch.

Which linear maps are packed is told by the files, where the folder holds them: the rules of a declaration are silent
about routers and about what the quantiser passed by. Without files the rules are followed.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from atb_models.layers.storage import Storage
from atb_models.models.config_fields import Fields
from atb_models.models.quantized.declaration import Declaration
from atb_models.models.quantized.gptq.file import completed
from atb_models.models.quantized.gptq.settings import (
    FIELDS,
    GptqForm,
    Rule,
    check_the_rest,
    form_of,
    parts_of_layers,
    rules_of,
)
from atb_models.models.quantized.packed.modules import PackedModules, find_packed, open_packed, packed_modules
from atb_models.models.quantized.rules import may_be_integers, module_of, warn_of_unknown
from atb_models.wording import counted

if TYPE_CHECKING:
    from atb_models.models.quantized.gptq.weight import GptqWeight
    from atb_models.models.quantized.packed.source import UnpackingWeights
    from atb_models.models.weights.checkpoint import Checkpoint

logger = logging.getLogger(__name__)


def read(declared: Declaration) -> Gptq:
    """The scheme of a folder that declares GPTQ. Raises ConfigError for a value that is not read."""
    declared = completed(declared)
    fields = Fields(declared.fields, Path(declared.place))
    form = form_of(fields)
    check_the_rest(fields)
    return Gptq(declared, form, rules_of(declared, form), parts_of_layers(declared))


@dataclass(frozen=True)
class Gptq:
    """form: of linear maps that no rule changes. parts: ends of the names that are packed within a layer; None: all."""

    declared: Declaration
    form: GptqForm
    rules: tuple[Rule, ...]
    parts: tuple[str, ...] | None

    @property
    def name(self) -> str:
        width = "rows" if self.form.group is None else f"groups of {self.form.group}"
        return f"gptq, {self.form.bits} bits in {width}{', some layers otherwise' if self.rules else ''}"

    @property
    def method(self) -> str:
        return f"w{self.form.bits}a16"

    def storage(self, weight: str) -> Storage | None:
        module = module_of(weight)
        if not may_be_integers(weight) or not self._is_packed(module) or self._is_scattered(module):
            return None
        form = self.form_of(module)
        return None if form is None else Storage(form.bits, form.group, offset=not form.symmetric)

    def has_bias(self, weight: str) -> bool:
        return self._packed is not None and module_of(weight) in self._packed.biased

    def open(self, checkpoint: Checkpoint) -> UnpackingWeights:
        """Raises CheckpointError for a tensor that is missing or does not fit."""
        from atb_models.models.quantized.gptq.weight import GptqWeight

        warn_of_unknown(self.declared, FIELDS)
        scattered = sum(self._is_scattered(module) for module in packed_modules(checkpoint.names()))
        if scattered:
            logger.warning(
                "%s: desc_act: the groups of %s are no runs of inputs; they become floats while they are read, and take"
                " the memory of floats",
                self.declared.place,
                counted(scattered, "linear map"),
            )

        def weight_of(present: set[str], module: str) -> GptqWeight:
            form = self.form_of(module) or self.form
            return GptqWeight(checkpoint, present, module, form, scattered=self._is_scattered(module))

        return open_packed(checkpoint, self, self.declared.place, weight_of)

    def form_of(self, module: str) -> GptqForm | None:
        """By the first rule that matches; None: it stays floats."""
        return next((rule.form for rule in self.rules if rule.pattern.match(module)), self.form)

    @cached_property
    def _packed(self) -> PackedModules | None:
        """What the files hold; None: there are none. Read when it is first asked for."""

        def group_of_ordered(module: str) -> int | None:
            form = self.form_of(module) or self.form
            return form.group if form.ordered else None

        return find_packed(self.declared.folder, group_of_ordered)

    def _is_packed(self, module: str) -> bool:
        if self._packed is not None:
            return module in self._packed.every
        return self.form_of(module) is not None and (self.parts is None or module.endswith(self.parts))

    def _is_scattered(self, module: str) -> bool:
        """Without files every order by activation is taken for a scattered one."""
        form = self.form_of(module) or self.form
        if not form.ordered or form.group is None:
            return False
        return self._packed is None or module in self._packed.scattered
