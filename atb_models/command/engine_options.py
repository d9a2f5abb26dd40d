"""From the arguments of a command line to the engine they ask for: run_pa, the service and the clients go this way."""

from __future__ import annotations

import argparse
import logging
import os

from atb_models import env
from atb_models.command.set_variables import unread_notice
from atb_models.command.values import AUTO
from atb_models.engine.config import EngineConfig
from atb_models.errors import ConfigError
from atb_models.fetch import download, look_folder, model_folder, needs_weights
from atb_models.files import expanded

logger = logging.getLogger(__name__)


def engine_config(
    args: argparse.Namespace, *, max_batch_size: int, max_seq_len: int | None = None, looks: bool = False
) -> EngineConfig:
    """The engine for the flags of `model_flags` and `cache_flags`, with its checkpoint found or fetched.

    looks: it is only looked at, so the name of a published model will do for a checkpoint.
    In a benchmark the prefix cache is off unless asked for: the throw-away run would leave its blocks to the timed one.
    Raises ConfigError or CheckpointError.
    """
    overrides = dict(args.config_overrides or {})
    if args.max_position_embeddings is not None:
        overrides["max_position_embeddings"] = args.max_position_embeddings
    default_cache = "off" if env.get("ATB_LLM_BENCHMARK_ENABLE") else "on"
    return EngineConfig(
        model_path=find_checkpoint(args.model_path, fetch=args.download, looks=looks),
        dtype=args.dtype,
        device=args.device,
        tp=ranks(args.tp),
        block_size=args.block_size,
        max_batch_size=max_batch_size,
        max_seq_len=max_seq_len,
        max_prefill_tokens=None if args.max_prefill_tokens == AUTO else args.max_prefill_tokens,
        kv_blocks=args.kv_blocks,
        prefix_cache=(args.prefix_cache or default_cache) == "on",
        chat_template=args.chat_template,
        config_overrides=overrides or None,
        trust_remote_code=args.trust_remote_code,
        load_format=args.load_format,
        quantize=args.quantize,
        kv_dtype=args.kv_dtype,
        deterministic=args.deterministic,
        graph_capture=args.graph_capture,
    )


def ranks(tp: int) -> int:
    """What --tp means: AUTO is as many as torchrun has started, 1 in a plain process. ConfigError where they differ."""
    world = env.get("WORLD_SIZE")
    if tp == AUTO:
        return int(world or 1)
    if world is not None and world != tp:
        raise ConfigError(f"--tp {tp} does not match torchrun's WORLD_SIZE {world}; leave --tp out")
    return tp


def find_checkpoint(path: str | None, *, fetch: bool, looks: bool = False) -> str | None:
    """The checkpoint's folder for what the user typed, None for the embedded one; with `fetch` a name is downloaded.

    looks: config.json is enough, and that of a published model is in this package.
    Where nothing was typed, ATB_LAUNCHER_MODEL_PATH counts as if it were. The launcher does this once and tells its
    ranks: for them that variable is the answer to the path in ATB_LAUNCHER_ASKED, and to no other. Raises ConfigError
    or CheckpointError.
    """
    found = env.get("ATB_LAUNCHER_MODEL_PATH")
    if found is not None and path in (None, env.get("ATB_LAUNCHER_ASKED")):
        try:
            return _folder(found, fetch=fetch, looks=looks)
        except ConfigError as error:
            raise ConfigError(f"ATB_LAUNCHER_MODEL_PATH: {error}") from None
    if path is None:
        named = env.get("ATB_LAUNCHER_MODEL")
        if named is not None and looks:
            return str(look_folder(named))
        if named is not None:
            raise ConfigError(needs_weights(named))
        if fetch:
            raise ConfigError("--download needs a --model_path that names what to fetch")
        return None
    return _folder(path, fetch=fetch, looks=looks)


def _folder(path: str, *, fetch: bool, looks: bool) -> str:
    """The folder that is named, or with `fetch` that of the repository."""
    if fetch and not expanded(path).is_dir():
        return str(download(path))
    return str(look_folder(path) if looks else model_folder(path))


def model_name(config: EngineConfig) -> str:
    """What clients call the model unless told otherwise: its folder's name, also where that was given as `.`."""
    return os.path.basename(os.path.abspath(config.folder)) if config.model_path else "demo"


def take_device(config: EngineConfig) -> str:
    """The kind of device that the engine computes on; a rank of torchrun is bound to its cores before torch uses them.

    The log names variables that are misspelt or without effect on it. Imports torch. Raises ConfigError for a device
    that is absent.
    """
    from atb_models.machine.affinity import bind_cores
    from atb_models.machine.device import choose_device

    kind = choose_device(config.device, deterministic=config.deterministic)
    for line in unread_notice(kind):
        logger.warning(line)
    bind_cores(kind)
    return kind
