"""The flags that say how tokens are chosen, and the parameters that they make."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from atb_models.command.parser import DEFAULT
from atb_models.command.values import positive
from atb_models.errors import ConfigError, RequestError
from atb_models.sampling_params import DEFAULTS, SamplingParams
from atb_models.sampling_table import BY_NAME, Kind, SamplingField

# Of run_pa, which has --max_output_length for max_tokens.
LAUNCHER_FIELDS = (
    "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "seed",
    "stop", "stop_token_ids", "ignore_eos", "logprobs",
)  # fmt: skip
# Of the clients: what a server of OpenAI's protocol understands as well as `SamplingParams`, by the same names.
CLIENT_FIELDS = (
    "max_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty",
    "frequency_penalty", "seed", "stop",
)  # fmt: skip
# A filter of this list means that sampling is wanted, but for the values that filter nothing.
NEUTRAL: dict[str, tuple[float, ...]] = {"top_k": (0, -1), "top_p": (1.0,), "min_p": (0.0,)}


def sampling_flags(group: argparse._ArgumentGroup) -> None:
    """run_pa's: greedy unless one of them asks otherwise."""
    add = group.add_argument
    add("--do_sample", action="store_true", help="sample, at temperature 1 unless given")
    add("--use_generation_config", action="store_true", help="what is not given is the checkpoint's generation_config")
    for name in LAUNCHER_FIELDS:
        _add(group, BY_NAME[name], _default_shown(BY_NAME[name]))


def client_sampling_flags(group: argparse._ArgumentGroup) -> None:
    """The clients'. What is not given is left to the model's generation_config."""
    for name in CLIENT_FIELDS:
        left_to_model = BY_NAME[name].generation is not None
        _add(group, BY_NAME[name], "the model's" if left_to_model else _default_shown(BY_NAME[name]))


def sampling_params(args: argparse.Namespace, generation: Mapping[str, object]) -> SamplingParams:
    """run_pa's: greedy without filters and penalties unless a flag says otherwise.

    --use_generation_config leaves what is not given to the checkpoint, whose `generation` defaults these are. Sampling
    that is asked for without a temperature, by --do_sample or a filter, takes the checkpoint's if it has one, else 1.
    Raises ConfigError for a value out of range.
    """
    values = {name: getattr(args, name) for name in LAUNCHER_FIELDS}
    samples = args.do_sample or any(values[name] not in (None, *neutral) for name, neutral in NEUTRAL.items())
    if samples and args.temperature is None:
        values["temperature"] = (generation.get("temperature") if args.use_generation_config else None) or 1.0
    if not args.use_generation_config:
        values |= {name: default for name, default in DEFAULTS.items() if values[name] is None}
    try:
        return SamplingParams(max_tokens=args.max_output_length, **values)
    except RequestError as error:
        raise ConfigError(f"--{error}") from None


def client_sampling(args: argparse.Namespace) -> dict[str, Any]:
    """What the clients' flags ask for, by its names in a request's body, which are SamplingParams' too.

    Raises ConfigError for a value out of range.
    """
    given = {name: getattr(args, name) for name in CLIENT_FIELDS if getattr(args, name) is not None}
    try:
        SamplingParams(**given)
    except RequestError as error:
        raise ConfigError(f"--{error}") from None
    return given


def _default_shown(field: SamplingField) -> str:
    """What the help has as the default of a field that is not left to the model's generation_config."""
    words = {"temperature": "0, or 1 where sampling is asked for", "seed": "another one each time"}
    return words.get(field.name, "none" if field.default is None else f"{field.default:g}")


def _add(group: argparse._ArgumentGroup, field: SamplingField, default: str) -> None:
    how: dict[Kind, dict[str, Any]] = {
        "number": {"type": float},
        "whole number": {"type": positive if field.low == 1 else int},
        "yes or no": {"action": "store_true"},
        "texts": {"nargs": "+", "metavar": "TEXT"},
        "token ids": {"nargs": "+", "type": int, "metavar": "ID"},
    }
    text = f"{field.help}; {field.allowed}" if "number" in field.kind else field.help
    text += "" if field.kind == "yes or no" else f" {DEFAULT}{default})"
    group.add_argument(f"--{field.name}", help=text, **how[field.kind])
