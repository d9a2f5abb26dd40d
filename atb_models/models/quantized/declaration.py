"""What a checkpoint folder says of its own quantisation, before a tensor is looked at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from atb_models.errors import ConfigError
from atb_models.json_file import check_size, read_json
from atb_models.wording import shown

MOST_BYTES: Final = 1 << 20  # of a file that holds a declaration


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


def read_declaration(path: Path) -> dict[str, Any]:
    """The object of a file that holds a declaration alone. Raises CheckpointError if it is damaged or too large."""
    check_size(path, MOST_BYTES)
    return read_json(path)


def method_name(value: Any) -> Any:
    """The name of a method or format in lower case and with hyphens; what is no text stays as it is."""
    return value.lower().replace("_", "-") if isinstance(value, str) else value
