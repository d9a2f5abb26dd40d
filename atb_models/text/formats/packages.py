"""The libraries that some files of tokenizers need, brought by the extra `tokenizers`."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from atb_models.errors import ConfigError
from atb_models.wording import install_command

EXTRA = "tokenizers"


def package(name: str, path: Path) -> Any:
    """The package that reads the file. Raises ConfigError with the command that installs it."""
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{path} is read with the package {name}, which is not installed ({error});"
            f" the extra {EXTRA} brings it: {install_command(EXTRA)}"
        ) from None
