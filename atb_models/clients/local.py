"""The engine of a client that uses no server."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, Any

from atb_models.command.engine_args import llm_arguments
from atb_models.command.interrupt import interrupt_ends_at_once
from atb_models.command.values import AUTO
from atb_models.launcher.prepare import find_checkpoint

if TYPE_CHECKING:
    from atb_models import LLM


def engine_arguments(args: argparse.Namespace, *, max_batch_size: int) -> dict[str, Any]:
    """Keyword arguments of `LLM` for the flags of a model. Raises ConfigError or CheckpointError."""
    args.max_batch_size = max_batch_size
    arguments = llm_arguments(args) | {
        "model_path": find_checkpoint(args.model_path, fetch=args.download),
        "max_seq_len": args.max_seq_len,
        "max_prefill_tokens": None if args.max_prefill_tokens == AUTO else args.max_prefill_tokens,
    }
    return arguments


def llm_of(args: argparse.Namespace, *, max_batch_size: int) -> LLM:
    """The model, loaded in this process. Raises AtbError."""
    arguments = engine_arguments(args, max_batch_size=max_batch_size)
    os.environ.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")
    with interrupt_ends_at_once():
        from atb_models import LLM
        from atb_models.machine.affinity import bind_cores
        from atb_models.machine.device import choose_device
    bind_cores(choose_device(args.device, deterministic=args.deterministic))
    return LLM(**arguments)
