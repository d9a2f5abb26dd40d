"""Which group of a compressed-tensors checkpoint a linear map belongs to, by its name.

As the library (release 0.20) decides: `ignore` excludes; of the targets that match, one that is the whole name goes
before patterns, these in the order of their texts, and patterns before classes. "re:" begins a pattern, which is
matched from the start of the name. Of a target that stands in several groups the last one counts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from atb_models.models.quantized.compressed.settings import Group
from atb_models.models.quantized.declaration import Declaration
from atb_models.models.quantized.rules import compiled, texts_of

_PATTERN: Final = "re:"


class Matching:
    """Names of linear maps, and the group of each."""

    def __init__(self, declared: Declaration, groups: Mapping[str, Group]) -> None:
        ignored = texts_of(declared, "ignore")
        self._ignored = frozenset(ignored)
        self._ignored_patterns = _patterns(declared, "ignore", ignored)
        self._targets = {target: group for group in groups.values() for target in group.targets}
        self._patterns = _patterns(declared, "targets", sorted(self._targets))
        self._found: dict[str, Group | None] = {}

    def group_of(self, module: str) -> Group | None:
        """None: it stays floats."""
        if module not in self._found:
            self._found[module] = self._find(module)
        return self._found[module]

    def _find(self, module: str) -> Group | None:
        kind = "Embedding" if module.endswith("embed_tokens") else "Linear"
        if {module, kind} & self._ignored or any(one.match(module) for one in self._ignored_patterns.values()):
            return None
        pattern = next((text for text, one in self._patterns.items() if one.match(module)), "")
        return next((self._targets[name] for name in (module, pattern, kind) if name in self._targets), None)


def _patterns(declared: Declaration, field: str, texts: list[str] | tuple[str, ...]) -> dict[str, re.Pattern[str]]:
    return {text: compiled(declared, field, text.removeprefix(_PATTERN)) for text in texts if text.startswith(_PATTERN)}
