"""What a checkpoint folder says of its own quantisation, before a tensor is looked at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atb_models.errors import ConfigError
from atb_models.wording import shown


@dataclass(frozen=True)
class Declaration:
    """The object that names the format and its settings, and where it stands.

    config: the whole config.json. fields: the object, of config.json or of a file of its own. place: what messages
    call it.
    """

    folder: Path
    config: Mapping[str, Any]
    fields: Mapping[str, Any]
    place: str

    def fail(self, name: str, why: str) -> ConfigError:
        """The error for a field whose value cannot be honoured."""
        return ConfigError(f"{self.place}: {name} is {shown(self.fields.get(name))}, {why}")
