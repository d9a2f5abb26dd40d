"""The engine of a run."""

from __future__ import annotations

import logging
from typing import Any

from atb_models import LLM
from atb_models.command.set_variables import unread_notice
from atb_models.errors import CapacityError, ConfigError
from modeltest.command.cases import Options, Run

logger = logging.getLogger("atb_models.modeltest")
IN_WORDS = (
    "of modeltest: --tp is the word chip_num, --max_batch_size the batch size; fewer --kv_blocks take a smaller batch"
    " or shorter pairs; --max_prefill_tokens is the mode's"
)


def open_llm(
    run: Run, options: Options, *, max_batch_size: int, max_seq_len: int, max_prefill_tokens: int | None = None
) -> LLM:
    """The engine that the words and options ask for; lengths in tokens.

    To be called once, before anything is printed or written: where several hosts run this program, the ranks other
    than 0 do not return from here. Raises what `LLM` does.
    """
    try:
        llm = LLM(
            run.weight_dir,
            dtype=run.dtype,
            device=options.device,
            tp=run.chips,
            max_batch_size=max_batch_size,
            max_seq_len=max_seq_len,
            max_prefill_tokens=max_prefill_tokens,
            kv_blocks=options.kv_blocks,
            prefix_cache=options.prefix_cache,
            config_overrides=config_overrides(run, options),
            trust_remote_code=run.trust_remote_code,
            load_format=options.load_format,
            quantize=options.quantize,
            kv_dtype=options.kv_dtype,
            deterministic=not run.is_performance,
        )
    except CapacityError as error:
        raise CapacityError(f"{error}\n{IN_WORDS}") from error
    for line in unread_notice(llm.device.type):
        logger.warning(line)
    return llm


def config_overrides(run: Run, options: Options) -> dict[str, Any] | None:
    """--config_overrides with the word max_position_embedding. Raises ConfigError where they contradict."""
    overrides, limit = dict(options.config_overrides or {}), run.max_position_embedding
    if limit is not None:
        other = overrides.setdefault("max_position_embeddings", limit)
        if other != limit:
            raise ConfigError(f"max_position_embedding {limit} contradicts {other!r} in --config_overrides; leave one")
    return overrides or None
