"""quantize_config.json beside a config.json that declares GPTQ too: one completes the other.

AutoGPTQ and GPTQModel write both. A config.json that another tool wrote may lack fields that say how numbers are
stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from atb_models.errors import ConfigError
from atb_models.json_file import is_there
from atb_models.models.quantized.declaration import Declaration, method_name, read_declaration
from atb_models.wording import shown

FILE: Final = "quantize_config.json"
# Those that change how tensors are read, without one that has two names: checkpoint_format, see format_field.
_FIELDS: Final = ("bits", "group_size", "sym", "desc_act", "dynamic", "data_type", "rotation", "is_marlin_format")


def format_field(fields: Mapping[str, Any]) -> str:
    """The field that says how zero points are stored: checkpoint_format, which newer files call format."""
    return "format" if fields.get("checkpoint_format") is None else "checkpoint_format"


def completed(declared: Declaration) -> Declaration:
    """The declaration of config.json with the fields that it lacks and the file has.

    Raises ConfigError where the two contradict each other, CheckpointError for a damaged file.
    """
    path = declared.folder / FILE
    if declared.place == str(path) or not is_there(path):
        return declared
    own, more = declared.fields, read_declaration(path)
    taken = {}
    pairs = [("quant_method", "quant_method"), (format_field(own), format_field(more))]
    for field, other in pairs + [(field, field) for field in _FIELDS]:
        here, there = own.get(field), more.get(other)
        if there is None:
            continue
        if here is None:
            taken[other] = there
        elif _comparable(field, here) != _comparable(other, there):
            raise ConfigError(
                f"{declared.place}: {field} is {shown(here)}, but {path}: {other} is {shown(there)}; correct the one"
                " that is not of these weights"
            )
    return replace(declared, fields={**own, **taken}, place=f"{declared.place} and {path}") if taken else declared


def _comparable(field: str, value: Any) -> Any:
    """Names of methods and formats are the same in upper and lower case."""
    return method_name(value) if field in ("quant_method", "checkpoint_format", "format") else value
