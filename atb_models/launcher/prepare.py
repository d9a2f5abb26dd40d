"""What run_pa's arguments ask for, checked as far as it goes without torch and a device."""

from __future__ import annotations

import argparse
import logging
from dataclasses import dataclass, replace

from atb_models.command.engine_options import engine_config
from atb_models.command.parser import typed
from atb_models.command.sampling import sampling_params
from atb_models.engine.config import EngineConfig
from atb_models.launcher.inputs import InputOptions, Inputs, Lengths, check_lengths, input_length, read_inputs
from atb_models.launcher.profiling import ProfileOptions
from atb_models.launcher.results import check_results
from atb_models.models.config import ModelConfig
from atb_models.sampling_params import SamplingParams

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """A run whose arguments are checked. model: what its config.json says. stream, load_tokenizer: the flags."""

    config: EngineConfig
    model: ModelConfig
    inputs: Inputs
    params: SamplingParams
    lengths: Lengths
    profile: ProfileOptions
    stream: bool
    load_tokenizer: bool


def prepare(args: argparse.Namespace) -> Prepared:
    """Find the checkpoint (with --download fetch it), read its config.json and the inputs; check what can be checked.

    Raises ConfigError or CheckpointError.
    """
    inputs = read_inputs(typed(args, InputOptions))
    sampling_params(args, {})  # what is out of range is said first
    check_results(profile=args.profile)
    config, model, _ = asked_engine(args)
    params = sampling_params(args, model.generation)
    if args.use_generation_config:  # the engine may leave it out, as REMOVE_GENERATION_CONFIG_DICT tells it to
        params = params.resolve(model.generation)
    if args.seed is not None and params.temperature == 0:
        logger.warning("--seed has no effect: decoding is greedy (--do_sample samples)")
    return Prepared(
        config=config,
        model=model,
        inputs=inputs,
        params=params,
        lengths=typed(args, Lengths),
        profile=typed(args, ProfileOptions),
        stream=args.stream,
        load_tokenizer=args.load_tokenizer,
    )


def asked_engine(args: argparse.Namespace) -> tuple[EngineConfig, ModelConfig, int]:
    """The engine that the arguments ask for, its model, and the prompt tokens planned for.

    A profile times each operation, so no step is captured. Raises ConfigError or CheckpointError.
    """
    lengths = typed(args, Lengths)
    config = engine_config(args, max_batch_size=args.max_batch_size, looks=args.plan or args.print_graph)
    model = config.load_model_config(generation_wanted=args.use_generation_config)
    limit = model.max_position_embeddings
    check_lengths(lengths, limit, f"{config.folder / 'config.json'}")
    length = input_length(lengths, limit)
    if config.max_prefill_tokens is None and lengths.max_prefill_batch_size is not None:  # automatic, as in MindIE
        tokens = lengths.max_prefill_batch_size * (length + lengths.max_output_length)
        config = replace(config, max_prefill_tokens=tokens)
    return replace(config, graph_capture=False) if args.profile else config, model, length
