"""run_pa's arguments as those of `LLM` and `SamplingParams`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from atb_models import env
from atb_models.errors import ConfigError, RequestError
from atb_models.launcher.args import AUTO
from atb_models.sampling_params import DEFAULTS, SamplingParams

# A filter of this list means that sampling is wanted, but for the values that filter nothing.
NEUTRAL: dict[str, tuple[float, ...]] = {"top_k": (0, -1), "top_p": (1.0,), "min_p": (0.0,)}


def sampling_params(args: argparse.Namespace, generation: Mapping[str, object]) -> SamplingParams:
    """Greedy without filters and penalties unless a flag says otherwise; raises ConfigError for a value out of range.

    --use_generation_config leaves what is not given to the checkpoint, whose `generation` defaults these are. Sampling
    that is asked for without a temperature, by --do_sample or a filter, takes the checkpoint's if it has one, else 1.
    """
    values = {name: getattr(args, name) for name in DEFAULTS}
    samples = args.do_sample or any(getattr(args, name) not in (None, *neutral) for name, neutral in NEUTRAL.items())
    if samples and args.temperature is None:
        values["temperature"] = (generation.get("temperature") if args.use_generation_config else None) or 1.0
    if not args.use_generation_config:
        values = {name: DEFAULTS[name] if value is None else value for name, value in values.items()}
    try:
        return SamplingParams(
            max_tokens=args.max_output_length,
            seed=args.seed,
            stop=args.stop,
            stop_token_ids=args.stop_token_ids,
            ignore_eos=args.ignore_eos,
            logprobs=args.logprobs,
            **values,
        )
    except RequestError as error:
        raise ConfigError(f"--{error}") from None


def llm_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments of `LLM`, but for `max_prefill_tokens`, which depends on the model.

    In a benchmark the prefix cache is off unless asked for: the throw-away run would leave its blocks to the timed one.
    """
    overrides = dict(args.config_overrides or {})
    if args.max_position_embeddings is not None:
        overrides["max_position_embeddings"] = args.max_position_embeddings
    default_cache = "off" if env.get("ATB_LLM_BENCHMARK_ENABLE") else "on"
    return {
        "model_path": args.model_path,
        "dtype": args.dtype,
        "device": args.device,
        "tp": ranks(args),
        "block_size": args.block_size,
        "max_batch_size": args.max_batch_size,
        "kv_blocks": args.kv_blocks,
        "prefix_cache": (args.prefix_cache or default_cache) == "on",
        "chat_template": args.chat_template,
        "config_overrides": overrides or None,
        "trust_remote_code": args.trust_remote_code,
        "load_format": args.load_format,
        "deterministic": args.deterministic,
        "graph_capture": args.graph_capture,
    }


def ranks(args: argparse.Namespace) -> int:
    """--tp, or without it as many as torchrun has started: 1 in a plain process. ConfigError where they differ."""
    world = env.get("WORLD_SIZE")
    if args.tp == AUTO:
        return int(world or 1)
    if world is not None and world != args.tp:
        raise ConfigError(f"--tp {args.tp} does not match torchrun's WORLD_SIZE {world}; leave --tp out")
    return int(args.tp)
