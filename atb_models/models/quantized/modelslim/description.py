"""quant_model_description*.json: which file it is, and what it says of every tensor and of the whole model."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from atb_models.errors import CheckpointError, ConfigError
from atb_models.json_file import check_size, is_there, read_json
from atb_models.models.quantized.modelslim.types import FLOAT, KV_TYPES, STORAGES, refusal
from atb_models.wording import named, shown

logger = logging.getLogger(__name__)

STEM: Final = "quant_model_description"
# Of a description: two hundred thousand tensors, and a parsed one may take some ten times its size.
MOST_BYTES: Final = 24 << 20
GROUPS: Final = (32, 64, 128, 256)
# Fields of config.json with settings of the whole model, the older first, and the settings.
FIELDS: Final = ("quantization", "quantization_config")
SETTINGS: Final = frozenset(
    ("group_size", "kv_quant_type", "kv_cache_type", "fa_quant_type", "reduce_quant_type", "pdmix")
)
_NO_EFFECT: Final = frozenset(("model_quant_type", "version", "pdmix"))
_REFUSED: Final = {
    "is_nzcasted": "its weights are laid out in the blocks of an NPU's own format",
    "AtlasGMMPermute": "its experts' weights are laid out for one NPU operator",
    "fa_quant_type": "queries, keys and values are quantised within the attention, which is not computed here",
    "reduce_quant_type": "what ranks exchange is quantised, which is not computed here",
}


@dataclass(frozen=True)
class Description:
    """types: of each tensor. group: inputs that share a scale where the whole model has one number; None: no groups.

    packed: two 4-bit numbers lie in a byte.
    """

    path: Path
    types: Mapping[str, str]
    group: int | None
    packed: bool
    quant_type: str | None  # the whole model's, a pick among those of the tensors


def is_declared(folder: Path, config: Mapping[str, Any]) -> bool:
    """Whether config.json or a file beside it says that the weights are ModelSlim's."""
    fields = any(config.get(name) for name in ("quantize", *FIELDS))
    return fields or any(folder.glob(f"{STEM}*.json"))


def settings_of(config: Mapping[str, Any], place: str) -> dict[str, Any]:
    """What config.json says of the whole model, in its newer field before its older one. Null is as absent."""
    settings: dict[str, Any] = {}
    for name in FIELDS:
        fields = config.get(name) or {}
        if not isinstance(fields, dict):
            raise ConfigError(f"{place}: {name} is {shown(fields)}, but must be null or an object")
        settings |= {key: value for key, value in fields.items() if key != "quant_method" and value is not None}
    return settings


def find_description(folder: Path, quantize: str | None) -> Path:
    """The file, by MindIE's order. Raises ConfigError where there is none, or several and no `quantize` to choose."""
    names = _file_names(quantize)
    for name in names:
        if is_there(folder / name):
            return folder / name
    others = sorted(path.name for path in folder.glob(f"{STEM}_*.json"))
    if quantize is None and len(others) == 1:
        return folder / others[0]
    if quantize is None and others:
        example = others[0].removeprefix(f"{STEM}_").removesuffix(".json")
        raise ConfigError(
            f"{folder} has {named(others)}; quantize in config.json must say which is meant, such as {shown(example)}"
        )
    said = f"says by quantize {shown(quantize)}" if quantize else f"says by {' or '.join(FIELDS)}"
    raise ConfigError(
        f"{folder / 'config.json'} {said} that the weights are ModelSlim's, but {folder} has no {' or '.join(names)}"
        f"{f', only {named(others)}' if others else ''}; copy the file that ModelSlim wrote beside the weights, or take"
        " the field away if they are floats"
    )


def _file_names(quantize: str | None) -> list[str]:
    names = [f"{STEM}.json"]
    if quantize is not None:
        words = [quantize.lower()]
        if "mix" in words[0]:
            words += [word for word in ("w8a8_pdmix", "w8a8_mix") if word not in words]
        if words[0].startswith("w8a8_"):
            words.append("w8a8")
        names += [f"{STEM}_{word}.json" for word in words]
    return names


def read_description(path: Path, settings: Mapping[str, Any], place: str) -> Description:
    """The content of the file. settings: what config.json says too, and where; the file's own comes first, and null is
    as absent.

    Raises CheckpointError naming file and tensor for damage, ConfigError for what is not computed here.
    """
    check_size(path, MOST_BYTES)
    types: dict[str, str] = {}
    others: dict[str, Any] = {}
    for name, value in read_json(path).items():
        if "." in name:
            types[name] = _checked_type(path, name, value)
        elif value is not None:
            others[name] = value
    for source, fields in ((place, settings), (str(path), others)):
        _check_settings(source, fields)
    if not types:
        raise CheckpointError(f"{path} describes no tensor; it is no description of weights, or damaged")
    version = others.get("version", "0.0.0")
    if version not in ("0.0.0", "1.0.0"):
        raise ConfigError(f"{path}: version is {shown(version)}, but only 0.0.0 and 1.0.0 are known")
    quant_type = others.get("model_quant_type")
    group = others.get("group_size", settings.get("group_size")) or None
    return Description(path, types, group, version != "0.0.0", quant_type if isinstance(quant_type, str) else None)


def _checked_type(path: Path, name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise CheckpointError(f"{path}: the type of tensor {named([name])} is {shown(value)}, but must be a text")
    if name.endswith((".div.mul_scale", ".linear.weight")):
        raise ConfigError(
            f"{path}: tensor {named([name])} is of NonFusionSmoothQuant, a factor for each input of a linear map while"
            " the model runs, which is not computed here; quantise without it"
        )
    if value == FLOAT or value in STORAGES or value in KV_TYPES:
        return value
    if (reason := refusal(value)) is not None:
        raise ConfigError(f"{path}: tensor {named([name])} is {shown(value)}: {reason}")
    raise CheckpointError(f"{path}: the type of tensor {named([name])} is {shown(value)}, which is none of ModelSlim's")


def _check_settings(place: str, fields: Mapping[str, Any]) -> None:
    """What is said of the whole model."""
    unknown = []
    for name, value in fields.items():
        if name == "group_size":
            if not isinstance(value, int) or isinstance(value, bool) or value not in (0, *GROUPS):
                choice = ", ".join(map(str, (0, *GROUPS)))
                raise CheckpointError(f"{place}: group_size is {shown(value)}, but must be one of {choice}")
        elif name in ("kv_quant_type", "kv_cache_type"):
            if value and value not in KV_TYPES:
                raise ConfigError(f"{place}: {name} is {shown(value)}, but only C8 is known")
        elif name in _REFUSED:
            if value:
                raise ConfigError(f"{place}: {name} is {shown(value)}: {_REFUSED[name]}")
        elif name in ("metadata", "optional"):
            _check_extras(place, name, value)
        elif name not in _NO_EFFECT:
            unknown.append(name)
    if unknown:
        logger.warning("%s: unknown fields are ignored: %s", place, named(unknown))


def _check_extras(place: str, name: str, value: Any) -> None:
    """What other tools wrote beside the types: an object for each of them."""
    if not isinstance(value, dict):
        raise CheckpointError(f"{place}: {name} is {shown(value)}, but must be an object")
    if value.get("quarot"):
        raise ConfigError(
            f"{place}: {name} has quarot: activations are to be rotated while the model runs, which is not computed"
            " here; quantise with ModelSlim without QuaRot's online rotation and extra files"
        )
    if left := value.keys() - {"quarot"}:
        logger.warning("%s: unknown fields of %s are ignored: %s", place, name, named(left))
