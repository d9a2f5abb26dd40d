"""config.json, read as data, to ModelConfig: a field is honoured, refused with its value, or named as unused."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from atb_models.errors import ConfigError
from atb_models.json_file import check_size, is_there, read_json
from atb_models.models.config import ModelConfig
from atb_models.models.config_bounds import MOST, MOST_EXPERTS
from atb_models.models.config_fields import Fields
from atb_models.models.config_neutral import NEUTRAL, SAME, is_same
from atb_models.models.config_rope import rope_fields
from atb_models.models.config_tables import WITHOUT_EFFECT
from atb_models.models.config_unknown import what_tells
from atb_models.models.dtypes import DTYPES, dtype_name
from atb_models.models.families import FAMILIES
from atb_models.models.family import Family
from atb_models.models.generation import MOST_BYTES, SAMPLING, generation_fields
from atb_models.models.generation import NEUTRAL as GENERATION_NEUTRAL
from atb_models.models.generation import WITHOUT_EFFECT as GENERATION_WITHOUT_EFFECT
from atb_models.models.quantized.read import read_scheme
from atb_models.wording import counted, named

logger = logging.getLogger(__name__)

# Fields of config.json that declare quantised weights; whoever reads those has checked them.
DECLARING = frozenset({"quantize", "quantization", "quantization_config", "compression_config"})


def load_model_config(
    folder: Path | str,
    overrides: Mapping[str, Any] | None = None,
    *,
    log: bool = True,
    generation_wanted: bool = False,
) -> ModelConfig:
    """Read config.json and generation_config.json of a checkpoint folder.

    The way in which a quantised checkpoint stores its tensors is read from all files that declare it.

    `overrides` replaces fields of config.json by name. `log=False` keeps the notices quiet (ranks other than 0).
    `generation_wanted` reads generation_config.json whatever REMOVE_GENERATION_CONFIG_DICT says.
    Raises ConfigError for a value that cannot be honoured or an unknown override, CheckpointError for a file that
    cannot be read.
    """
    path = Path(folder) / "config.json"
    if not is_there(path):
        raise ConfigError(f"{path} does not exist: {folder} is no checkpoint folder, it holds {_contents(path.parent)}")
    check_size(path, MOST_BYTES)
    fields = Fields(read_json(path), path, overrides)
    family = _family(fields)
    fields.defaults = family.defaults
    values = {**decoder_fields(fields), **family.parse_config(fields)}
    if "rope" not in values:
        values["rope"] = rope_fields(fields, values["head_dim"])
    values.update(generation_fields(path.parent, fields, fields.overrides, log=log, wanted=generation_wanted))
    scheme = read_scheme(path.parent, fields.raw)
    if scheme is not None:
        fields.known |= DECLARING
    config = ModelConfig(**values, overridden=tuple(sorted(fields.overrides)), scheme=scheme)
    _check_consistent(config, fields, log=log)
    _check_rest(config, fields, log=log)
    if log and config.extra_layers:
        extra = counted(config.extra_layers, "layer")
        logger.info("%s: %s that would predict further tokens left out", fields.file, extra)
    fields.check_overrides()
    return config


def decoder_fields(fields: Fields) -> dict[str, Any]:
    """The fields that every family's config.json has in common."""
    heads = fields.integer("num_attention_heads")
    hidden = fields.integer("hidden_size")
    if fields.get("head_dim") is None and hidden % heads != 0:
        raise fields.fail("hidden_size", f"but must be a multiple of num_attention_heads, which is {heads}")
    if fields.get("head_dim") is None and hidden // heads > MOST["head_dim"]:
        most = heads * MOST["head_dim"]
        raise fields.fail("hidden_size", f"but may be at most {most} for {heads} attention heads without a head_dim")
    fields.choice("hidden_act", ("silu",), "silu")
    attention = fields.get("layer_types", [])
    if not isinstance(attention, list) or any(kind != "full_attention" for kind in attention):
        raise fields.fail("layer_types", "but only full_attention is supported, in every layer")
    return {
        "model_type": fields.get("model_type"),
        "vocab_size": fields.integer("vocab_size"),
        "hidden_size": hidden,
        "intermediate_size": fields.integer("intermediate_size"),
        "num_hidden_layers": fields.integer("num_hidden_layers"),
        "num_attention_heads": heads,
        "num_key_value_heads": fields.integer("num_key_value_heads", heads),
        "head_dim": fields.integer("head_dim", hidden // heads),
        "rms_norm_eps": fields.number("rms_norm_eps", 1e-6),
        "max_position_embeddings": fields.integer("max_position_embeddings"),
        "tie_word_embeddings": fields.flag("tie_word_embeddings", False),
        "initializer_range": fields.number("initializer_range", 0.02, exclusive=False),
        "torch_dtype": _torch_dtype(fields),
    }


def _family(fields: Fields) -> Family:
    name = fields.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        raise fields.fail("model_type", f"but only {', '.join(map(repr, FAMILIES))} is supported")
    return FAMILIES[name]


def _torch_dtype(fields: Fields) -> str | None:
    """The declared data type; newer files call the field dtype."""
    old, new = fields.get("torch_dtype"), fields.get("dtype")
    name, value = ("dtype", new) if old is None else ("torch_dtype", old)
    if value is None:
        return None
    short = dtype_name(value) if isinstance(value, str) else None
    if short not in DTYPES:
        raise fields.fail(name, f"but only {', '.join(names.torch for names in DTYPES.values())} are supported")
    return short


def _check_rest(config: ModelConfig, fields: Fields, *, log: bool) -> None:
    """Refuse, name or warn of the fields that the family's parser did not ask for."""
    without_effect, unknown = [], []
    generation = {*SAMPLING, *GENERATION_NEUTRAL, *GENERATION_WITHOUT_EFFECT}
    for name, value in fields.raw.items():
        if name in fields.known:
            continue
        if name in fields.without_effect | WITHOUT_EFFECT | generation:
            without_effect.append(name)
        elif name in NEUTRAL:
            fields.only(name, NEUTRAL[name])
        elif name in SAME:
            _check_same(config, fields, name)
        elif (telling := what_tells(name, value)) is not None:
            away = json.dumps({name: None})
            raise fields.fail(
                name,
                f"which this project does not know, but by its {telling} it changes the model's mathematics;"
                f" if it does not, --config_overrides '{away}' takes it away",
            )
        else:
            unknown.append(name)
    if log and without_effect:
        logger.info("%s: without effect here: %s", fields.file, named(without_effect))
    if log and unknown:
        logger.warning("%s: unknown fields are ignored: %s", fields.file, named(unknown))


def _check_same(config: ModelConfig, fields: Fields, name: str) -> None:
    """Refuse a field that says otherwise than those that the model is built from."""
    wanted = SAME[name](config)
    if not is_same(fields.get(name), wanted):
        raise fields.fail(name, f"but only {wanted!r} is supported, which the other fields say")


def _check_consistent(config: ModelConfig, fields: Fields, *, log: bool) -> None:
    """Relations between fields that no single field shows."""
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    if heads % kv_heads != 0:
        raise fields.fail("num_attention_heads", f"but must be a multiple of num_key_value_heads, which is {kv_heads}")
    if (width := config.rope.width) % 2 != 0:
        raise ConfigError(f"{fields.file}: rotary positions turn pairs, but a head has {width} values to turn")
    if config.num_experts_per_tok > config.num_experts:
        raise ConfigError(
            f"{fields.file}: {config.num_experts_per_tok} experts per token are asked of {config.num_experts} experts"
        )
    if config.num_experts:
        _check_groups(config, fields)
    experts = sum(config.moe_layers) * config.num_experts
    if experts > MOST_EXPERTS:
        why = f"which with {config.num_experts} experts each makes {experts} experts, more than {MOST_EXPERTS}"
        raise fields.fail("num_hidden_layers", why)
    ids = (*config.eos_token_ids, *(() if config.bos_token_id is None else (config.bos_token_id,)))
    outside = next((token for token in ids if token >= config.vocab_size), None)
    if log and outside is not None:
        logger.warning("%s: bos or eos token id %d is outside vocab_size %d", fields.file, outside, config.vocab_size)


def _check_groups(config: ModelConfig, fields: Fields) -> None:
    """The groups are equal, and the best of them hold enough experts; the gating (ops/gating.py) relies on it."""
    groups, best, experts = config.expert_groups, config.top_expert_groups, config.num_experts
    size, top_k = experts // groups, config.num_experts_per_tok
    for is_wrong, problem in (
        (experts % groups, f"{groups} groups are not equal"),
        (not 1 <= best <= groups, f"{best} of {groups} groups cannot be chosen"),
        (top_k > best * size, f"the best groups hold {best * size}, fewer than the {top_k} of a token"),
        (config.expert_group_score == "top2" and size < 2, "a group of one expert has no two best"),
    ):
        if is_wrong:
            raise ConfigError(f"{fields.file}: {experts} experts: {problem}")


def _contents(folder: Path) -> str:
    if not folder.is_dir():
        return "nothing: it is no folder"
    names = sorted(item.name for item in folder.iterdir())
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    return shown or "nothing"
