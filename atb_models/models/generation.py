"""What a checkpoint says about generating: sampling defaults and the tokens that end an answer."""

from __future__ import annotations

import logging
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

from atb_models import env
from atb_models.json_file import check_size, is_there, read_json
from atb_models.models.config import ModelConfig
from atb_models.models.config_fields import Fields
from atb_models.sampling_table import FIELDS
from atb_models.wording import named, shown

logger = logging.getLogger(__name__)

MOST_BYTES = 4 << 20  # of this file, and of the config.json beside it; published ones have 100 kB at most

FIELDS_BY_NAME = {row.generation: row for row in FIELDS if row.generation is not None}
SAMPLING = ("do_sample", *FIELDS_BY_NAME)

# Fields of transformers' GenerationConfig that would change the answer, with the value at which they do not.
NEUTRAL: dict[str, Any] = {
    "num_beams": 1,
    "num_beam_groups": 1,
    "num_return_sequences": 1,
    "diversity_penalty": 0.0,
    "penalty_alpha": 0.0,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "bad_words_ids": None,
    "force_words_ids": None,
    "constraints": None,
    "sequence_bias": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "forced_decoder_ids": None,
    "exponential_decay_length_penalty": None,
    "guidance_scale": 1.0,
    "min_length": 0,
    "min_new_tokens": 0,
    "max_time": None,
    "stop_strings": None,
    "watermarking_config": None,
}

# Bookkeeping, or meaningful only together with a field of NEUTRAL. max_length counts the prompt too; the engine's
# limit is max_seq_len.
WITHOUT_EFFECT = frozenset(
    """
    _from_model_config transformers_version pad_token_id decoder_start_token_id use_cache output_attentions
    output_hidden_states output_scores output_logits return_dict_in_generate max_length length_penalty early_stopping
    renormalize_logits remove_invalid_values low_memory generation_kwargs cache_implementation cache_config
    chat_format trust_remote_code _commit_hash max_window_size transformers_weights
    """.split()
)


def generation_fields(
    folder: Path, config: Fields, overrides: Container[str], *, log: bool, wanted: bool = False
) -> dict[str, Any]:
    """bos_token_id, eos_token_ids and the sampling defaults of a checkpoint.

    An answer ends with each id that either file names. bos_token_id is generation_config.json's, else config.json's;
    without the first file the sampling fields of config.json count, as they do for transformers. A field in
    `overrides` is taken from `config` alone. REMOVE_GENERATION_CONFIG_DICT=1 ignores generation_config.json and all
    sampling fields, unless they are `wanted`. Raises ConfigError for a value of the wrong type or range.
    """
    path = folder / "generation_config.json"
    ignored = not wanted and env.get("REMOVE_GENERATION_CONFIG_DICT")
    present = not ignored and is_there(path)
    if present:
        check_size(path, MOST_BYTES)
    file = Fields(read_json(path), path) if present else config
    bos, config_bos = (fields.optional_integer("bos_token_id", minimum=0) for fields in (file, config))
    sources = (config,) if "eos_token_id" in overrides else (file, config)
    said = {fields.file.name: _eos_token_ids(fields) for fields in sources}
    eos = {name: ids for name, ids in said.items() if ids}
    sampling = {} if ignored else _sampling(file)
    if log and not ignored:
        _report(file, is_generation_config=present)
    return {
        "bos_token_id": config_bos if bos is None or "bos_token_id" in overrides else bos,
        "eos_token_ids": tuple(dict.fromkeys(token for ids in eos.values() for token in ids)),
        "eos_by_file": eos,
        "generation": sampling,
    }


def answer_ends(model: ModelConfig, by_file: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    """The ids that end an answer: those of the model's files and of the tokenizer's, `by_file`.

    A fine-tune often changes one file and leaves the others of its base model. Warns where the files differ: where one
    names an id that the first of them, which alone counts for transformers, does not. config_overrides replaces all.
    """
    if "eos_token_id" in model.overridden:
        return model.eos_token_ids
    named = {**model.eos_by_file, **by_file}
    ends = tuple(dict.fromkeys(token for ids in named.values() for token in ids))
    if named and set(ends) != set(next(iter(named.values()))):
        said = ", ".join(f"{file} {' and '.join(map(str, ids))}" for file, ids in named.items())
        logger.warning("the files differ in the token that ends an answer, each of these does: %s", said)
    for token in ends:
        if token >= model.vocab_size and token not in model.eos_token_ids:
            logger.warning("the tokenizer's eos token id %d is outside vocab_size %d", token, model.vocab_size)
    return ends


def _eos_token_ids(fields: Fields) -> tuple[int, ...] | None:
    return fields.token_ids("eos_token_id", "; a stop sequence of several tokens belongs into SamplingParams.stop")


def _sampling(fields: Fields) -> dict[str, Any]:
    """The sampling fields that are set, checked."""
    values: dict[str, Any] = {"do_sample": fields.flag("do_sample", False)}
    for name, row in FIELDS_BY_NAME.items():
        if fields.get(name) is None:
            continue
        if row.kind == "whole number":
            values[name] = fields.integer(name, minimum=int(row.low))
        else:
            values[name] = fields.number(name, minimum=row.low, exclusive=row.above_low)
        if values[name] > row.high:
            raise fields.fail(name, f"but must be a number of at most {row.high:g}")
    return values


def _report(fields: Fields, *, is_generation_config: bool) -> None:
    """Warn of each field that would change the answer and is not applied, and of unknown ones."""
    unknown = []
    for name, value in fields.raw.items():
        if name in NEUTRAL:
            if value is not None and value != NEUTRAL[name]:
                logger.warning("%s: %s=%s is not supported and not applied", fields.file, name, shown(value))
        elif is_generation_config and name not in fields.known | WITHOUT_EFFECT:
            unknown.append(name)
    if unknown:
        logger.warning("%s: unknown fields are ignored: %s", fields.file, named(unknown))
