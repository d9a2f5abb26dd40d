"""What run_pa's arguments ask for, checked as far as it goes without torch and a device."""

from __future__ import annotations

import argparse
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from atb_models import env
from atb_models.command.engine_args import llm_arguments
from atb_models.command.sampling import sampling_params
from atb_models.engine.config import EngineConfig
from atb_models.errors import ConfigError
from atb_models.fetch import download, model_folder, needs_weights
from atb_models.launcher.args import check_lengths, input_length
from atb_models.launcher.inputs import Inputs, read_inputs
from atb_models.launcher.results import check_results
from atb_models.models.config import ModelConfig
from atb_models.sampling_params import SamplingParams

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """`llm`: the keyword arguments of `LLM`. `model`: its config.json. `input_length`: prompt tokens planned for."""

    llm: dict[str, Any]
    model: ModelConfig
    inputs: Inputs
    params: SamplingParams
    input_length: int


def prepare(args: argparse.Namespace) -> Job:
    """Find the checkpoint (with --download fetch it), read its config.json and the inputs; check what can be checked.

    Raises ConfigError or CheckpointError.
    """
    inputs = read_inputs(args)
    sampling_params(args, {})  # what is out of range is said first
    check_results(profile=args.profile)
    config, model, length = asked_engine(args)
    params = sampling_params(args, model.generation)
    if args.seed is not None and params.temperature == 0:
        logger.warning("--seed has no effect: decoding is greedy (--do_sample samples)")
    llm = _llm_arguments(args) | {"model_path": config.model_path, "max_prefill_tokens": config.max_prefill_tokens}
    return Job(llm, model, inputs, params, length)


def asked_engine(args: argparse.Namespace) -> tuple[EngineConfig, ModelConfig, int]:
    """The engine that the arguments ask for, its model, and the prompt tokens planned for.

    Raises ConfigError or CheckpointError.
    """
    path = find_checkpoint(args.model_path, fetch=args.download)
    config = EngineConfig(**_llm_arguments(args) | {"model_path": path})
    model = config.load_model_config()
    limit = model.max_position_embeddings
    check_lengths(args, limit, f"{config.folder / 'config.json'}")
    length = input_length(args, limit)
    return replace(config, max_prefill_tokens=_prefill_tokens(args, length)), model, length


def _llm_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """A profile times each operation, so none is captured."""
    return llm_arguments(args) | ({"graph_capture": False} if args.profile else {})


def find_checkpoint(path: str | None, *, fetch: bool) -> str | None:
    """The checkpoint's folder for what the user typed, None for the embedded one; with `fetch` a name is downloaded.

    The launcher does this once and tells its ranks.
    """
    found = env.get("ATB_LAUNCHER_MODEL_PATH")
    if found is not None:
        return str(found)
    if path is None:
        named = env.get("ATB_LAUNCHER_MODEL")
        if named is not None:
            raise ConfigError(needs_weights(named))
        if fetch:
            raise ConfigError("--download needs a --model_path that names what to fetch")
        return None
    if fetch and not Path(path).expanduser().is_dir():
        return str(download(path))
    return str(model_folder(path))


def _prefill_tokens(args: argparse.Namespace, length: int) -> int | None:
    """--max_prefill_tokens; automatic: by --max_prefill_batch_size as in MindIE, else the engine's own."""
    if args.max_prefill_tokens > 0:
        return int(args.max_prefill_tokens)
    if args.max_prefill_batch_size is None:
        return None
    return int(args.max_prefill_batch_size) * (length + int(args.max_output_length))
