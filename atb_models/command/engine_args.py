"""run_pa's arguments as those of `LLM`."""

from __future__ import annotations

import argparse
from typing import Any

from atb_models import env
from atb_models.command.values import AUTO
from atb_models.errors import ConfigError


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
