"""What run_pa's arguments ask for, checked as far as it goes without torch and a device."""

from __future__ import annotations

import argparse
import logging
from dataclasses import dataclass, replace

from atb_models.command.engine_options import engine_config
from atb_models.command.sampling import sampling_params
from atb_models.engine.config import EngineConfig
from atb_models.launcher.args import check_lengths, input_length
from atb_models.launcher.inputs import Inputs, read_inputs
from atb_models.launcher.results import check_results
from atb_models.models.config import ModelConfig
from atb_models.sampling_params import SamplingParams

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """`model`: its config.json. `input_length`: prompt tokens planned for."""

    config: EngineConfig
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
    return Job(config, model, inputs, params, length)


def asked_engine(args: argparse.Namespace) -> tuple[EngineConfig, ModelConfig, int]:
    """The engine that the arguments ask for, its model, and the prompt tokens planned for.

    A profile times each operation, so no step is captured. Raises ConfigError or CheckpointError.
    """
    config = engine_config(args, max_batch_size=args.max_batch_size)
    model = config.load_model_config()
    limit = model.max_position_embeddings
    check_lengths(args, limit, f"{config.folder / 'config.json'}")
    length = input_length(args, limit)
    if config.max_prefill_tokens is None and args.max_prefill_batch_size is not None:  # automatic, as in MindIE
        config = replace(config, max_prefill_tokens=args.max_prefill_batch_size * (length + args.max_output_length))
    return replace(config, graph_capture=False) if args.profile else config, model, length
