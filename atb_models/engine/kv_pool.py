"""How many KV blocks the ranks hold: decided by rank 0 for all, before a weight is read."""

from __future__ import annotations

import logging

import numpy as np

from atb_models import ops
from atb_models.engine.config import EngineConfig
from atb_models.engine.loading import check_tables
from atb_models.errors import CapacityError, ConfigError
from atb_models.limits import PREFILL_TOKENS, Limits
from atb_models.machine.memory import Free, free_memory
from atb_models.models.config import ModelConfig
from atb_models.models.dtypes import kv_torch_dtype, torch_dtype
from atb_models.plan.capacity import Deployment, Shortage
from atb_models.ranks.group import RankGroup
from atb_models.wording import gib

logger = logging.getLogger(__name__)


def agree_on_kv_blocks(config: EngineConfig, model: ModelConfig, group: RankGroup) -> int | None:
    """The number of blocks, the same on every rank; None on the others where rank 0 has refused the model.

    Raises CapacityError on rank 0 when the model, or the number of blocks asked for, does not fit the rank that has
    the least memory.
    """
    ops.bind(group.device.type)
    dtype = torch_dtype(model.run_dtype(config.dtype))
    kv_dtype = kv_torch_dtype(config.kv_dtype)
    deployment = Deployment(model, dtype, group.size, engine_limits(config, model), config.quantize, kv_dtype)
    if group.rank == 0:
        with group.doing("planning memory"):
            deployment.memory()  # what tracing takes for itself is taken before anybody looks, as what the others take
    group.barrier("their start")
    with group.doing("looking for memory"):
        free = agreed_memory(group)
    if group.rank != 0:
        decision = group.receive_step()
        return None if decision is None else int(decision[0])
    blocks = choose_kv_blocks(config, deployment, free, group.ranks_here)
    with group.doing("sharing out memory"):
        group.send_step(np.array([blocks], dtype=np.int32))
    return blocks


def agreed_memory(group: RankGroup) -> Free:
    """The least that any rank of the group finds free."""
    free = free_memory(group.device)
    own = group.minimum(free.own)
    return Free(own, None if free.shared is None else group.minimum(free.shared), free.most_ranks)


def choose_kv_blocks(config: EngineConfig, deployment: Deployment, free: Free, ranks_here: int) -> int:
    """`kv_blocks`, or else blocks for `max_batch_size` sequences of `max_seq_len` tokens, or as many as fit.

    Raises CapacityError when not one block fits, or not the number asked for; a request that is too long for the pool
    is refused on its own. Raises CheckpointError instead where the checkpoint's files are of another, smaller model.
    """
    usable = free.of_rank(ranks_here)
    memory, blocks = deployment.start(usable, config.kv_blocks)
    if not blocks:
        check_tables(config, deployment.model)
        raise CapacityError(
            Shortage(
                deployment,
                memory,
                usable,
                blocks=config.kv_blocks or 1,
                usable_by=lambda ranks: _usable_by(free, ranks, deployment.size // ranks_here),
                where=free.where(ranks_here),
                overrides=config.config_overrides or {},
            ).message()
        )
    logger.info(
        "memory of a rank: %s usable, weights %s, activations at most %s, KV cache %s (%d tokens)",
        gib(usable), gib(memory.weights), gib(memory.activations), gib(blocks * memory.kv_block),
        blocks * memory.block_size,
    )  # fmt: skip
    return blocks


def _usable_by(free: Free, ranks: int, hosts: int) -> int | None:
    """What each of so many ranks might use; None where there cannot be so many."""
    if ranks % hosts or (free.most_ranks is not None and ranks // hosts > free.most_ranks):
        return None
    return free.of_rank(ranks // hosts)


def engine_limits(config: EngineConfig, model: ModelConfig) -> Limits:
    """What bounds a step of this engine; raises ConfigError as `sequence_limit` does."""
    return Limits(
        max_batch_size=config.max_batch_size,
        max_prefill_tokens=config.max_prefill_tokens or PREFILL_TOKENS,
        max_seq_len=sequence_limit(config, model),
        block_size=config.block_size,
        graph_capture=bool(config.graph_capture),
    )


def sequence_limit(config: EngineConfig, model: ModelConfig) -> int:
    """Tokens a sequence may have, prompt and answer together. Raises ConfigError beyond the model's positions."""
    limit = model.max_position_embeddings
    if config.max_seq_len is not None and config.max_seq_len > limit:
        raise ConfigError(
            f"max_seq_len {config.max_seq_len} is beyond the model's {limit} positions;"
            " lower it, or raise the limit with --config_overrides '{\"max_position_embeddings\": ...}'"
        )
    return config.max_seq_len or limit
