"""Which format a quantised checkpoint has: the table of those that are read, and the refusal of all others by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from atb_models.errors import ConfigError
from atb_models.json_file import is_there
from atb_models.models.quantized.awq import scheme as awq
from atb_models.models.quantized.compressed import scheme as compressed
from atb_models.models.quantized.declaration import Declaration, method_name, read_declaration
from atb_models.models.quantized.float8 import scheme as float8
from atb_models.models.quantized.gptq import scheme as gptq
from atb_models.models.quantized.modelslim.description import SETTINGS, is_declared
from atb_models.models.quantized.modelslim.scheme import read as read_modelslim
from atb_models.models.quantized.refusals import advice
from atb_models.models.quantized.scheme import Scheme
from atb_models.wording import named, shown

# quant_method, in lower case and with hyphens -> the scheme of what such a checkpoint declares. ModelSlim's weights
# have files of their own that say so, see modelslim/.
FORMATS: Final[Mapping[str, Callable[[Declaration], Scheme]]] = {
    "awq": awq.read,
    "compressed-tensors": compressed.read,
    "fp8": float8.read,
    "gptq": gptq.read,
}
# Names that other engines have for ModelSlim's format where they want a quant_method.
MODELSLIM: Final = ("ascend", "modelslim")

# Fields of config.json that hold the declaration, with the method of one that names none.
FIELDS: Final = {"quantization_config": None, "compression_config": "compressed-tensors"}
# Files that hold it in place of config.json, alike.
FILES: Final = {"quantize_config.json": "gptq", "quant_config.json": "awq"}


def read_scheme(folder: Path | str, config: Mapping[str, Any]) -> Scheme | None:
    """How the tensors of the checkpoint in `folder` are stored; None: as floats.

    config: the fields of its config.json. Raises ConfigError naming a format that is not read and what makes floats of
    it, CheckpointError for a damaged file.
    """
    folder = Path(folder)
    declared = _declaration(folder, config)
    if declared is None:
        return read_modelslim(folder, config) if is_declared(folder, config) else None
    method = str(declared.fields["quant_method"])
    if method in MODELSLIM:
        return read_modelslim(folder, config)
    if config.get("quantize"):
        raise ConfigError(
            f"{folder / 'config.json'}: quantize is {shown(config['quantize'])}, which is for ModelSlim's weights, but"
            f" {declared.place} names {shown(method)}; take away the one that is not of these weights"
        )
    if method not in FORMATS:
        raise declared.fail("quant_method", advice(method, FORMATS))
    return FORMATS[method](declared)


def _declaration(folder: Path, config: Mapping[str, Any]) -> Declaration | None:
    """What names a quant_method, its letters and hyphens made uniform; None where nothing does."""
    for name, default in FIELDS.items():
        fields, place = config.get(name), f"{folder / 'config.json'}: {name}"
        if not fields:
            continue
        if not isinstance(fields, dict):
            raise ConfigError(f"{place} is {shown(fields)}, but must be null or an object")
        if not fields.keys() <= SETTINGS:
            return _named(Declaration(folder, config, fields, place), default or _method_by_fields(fields))
    if isinstance(quantization := config.get("quantization"), dict) and _method_by_fields(quantization):
        return _named(Declaration(folder, config, quantization, f"{folder / 'config.json'}: quantization"), "mlx")
    if is_declared(folder, config):
        return None
    for name, default in FILES.items():
        if is_there(path := folder / name):
            return _named(Declaration(folder, config, read_declaration(path), str(path)), default)
    return None


def _named(declared: Declaration, default: str | None) -> Declaration:
    """The same with its quant_method in lower case and with hyphens, or else with the default."""
    method = declared.fields.get("quant_method", default)
    if method is None:
        raise ConfigError(f"{declared.place} has no quant_method, only {named(declared.fields)}: the format is unknown")
    if not isinstance(method, str):
        raise declared.fail("quant_method", "but must be the name of a format")
    fields = {**declared.fields, "quant_method": method_name(method)}
    return Declaration(declared.folder, declared.config, fields, declared.place)


def _method_by_fields(fields: Mapping[str, Any]) -> str | None:
    """Of formats that do without a quant_method: bitsandbytes by its switches, MLX by its two numbers."""
    if fields.keys() & {"load_in_4bit", "load_in_8bit"}:
        return "bitsandbytes"
    return "mlx" if {"group_size", "bits"} <= fields.keys() else None
