"""A rank's half of a step: the model's shard, its KV cache, and the message that says what to compute."""

from __future__ import annotations

import math
from collections.abc import Sequence as Rows

import numpy as np
import torch
from torch import Tensor

from atb_models import ops
from atb_models.engine.config import EngineConfig
from atb_models.engine.memory import block_bytes, choose_kv_blocks, free_memory
from atb_models.engine.message import Int32, decode_step, encode_step
from atb_models.engine.ranks import RankGroup
from atb_models.engine.scheduler import Row
from atb_models.errors import ConfigError
from atb_models.layers.attention import LayerCache
from atb_models.layers.heads import kv_heads_per_rank
from atb_models.layers.parameter import Build
from atb_models.models.config import ModelConfig
from atb_models.models.decoder import Decoder, build_model
from atb_models.models.dtypes import torch_dtype
from atb_models.models.loader import load_weights, open_weights


class ModelRunner:
    """Builds and loads this rank's shard, then executes steps. Every rank has one; rank 0 also calls `run`."""

    def __init__(self, config: EngineConfig, group: RankGroup) -> None:
        self.config, self.group = config, group
        self.model_config = config.load_model_config(log=group.rank == 0)
        self.dtype = torch_dtype(self.model_config.run_dtype(config.dtype))
        self.max_seq_len = sequence_limit(config, self.model_config)
        ops.bind(group.device.type)
        build = Build(self.dtype, group.device, group.rank, group.size, group)
        self.model: Decoder = build_model(self.model_config, build)
        with group.doing("loading weights"):
            self._load(progress=group.rank == 0)
            group.barrier("loading")
        self.kv_heads = kv_heads_per_rank(
            self.model_config.num_attention_heads, self.model_config.num_key_value_heads, group.size
        )
        self.kv_blocks = self._agree_on_kv_blocks()
        self.caches = [self._layer_cache() for _ in range(self.model_config.num_hidden_layers)]

    def run(self, rows: Rows[Row]) -> Tensor:
        """Rank 0: send the step to the other ranks and execute it -> logits [L, V] float32."""
        message = encode_step(rows)
        with self.group.doing("running a step"):
            self.group.send_step(message)
            return self.execute(message)

    @torch.inference_mode()
    def execute(self, message: Int32) -> Tensor:
        """Run the model on a step message; every rank gets the same logits."""
        return self.model(decode_step(message, self.config.block_size, self.group.device), self.caches)

    def _load(self, *, progress: bool) -> None:
        source = open_weights(self.config.folder, self.config.load_format, self.model, self.model_config)
        try:
            load_weights(self.model, self.model_config, source, progress=progress, check=self.group.check)
        finally:
            source.close()

    def _layer_cache(self) -> LayerCache:
        shape = (self.kv_blocks, self.config.block_size, self.kv_heads, self.model_config.head_dim)
        k, v = (lazy_zeros(shape, self.dtype, self.group.device) for _ in range(2))
        return LayerCache(k, v)

    def _agree_on_kv_blocks(self) -> int:
        """The same number on every rank: the smallest that any of them has memory for."""
        per_block = block_bytes(self.model_config, self.kv_heads, self.config.block_size, self.dtype)
        free = free_memory(self.group.device, self.group.ranks_here)
        return self.group.minimum(choose_kv_blocks(self.config, self.max_seq_len, per_block, free))


def lazy_zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros; on a CPU the pages are taken only when first written, so that a large pool costs what is used of it."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    raw = np.zeros(math.prod(shape) * dtype.itemsize, dtype=np.uint8)
    return torch.from_numpy(raw).view(dtype).view(shape)


def serve(runner: ModelRunner, group: RankGroup) -> None:
    """The life of every rank but 0: execute steps until rank 0 closes."""
    while (message := group.receive_step()) is not None:
        runner.execute(message)


def sequence_limit(config: EngineConfig, model_config: ModelConfig) -> int:
    """Tokens a sequence may have, prompt and answer together. Raises ConfigError beyond the model's positions."""
    limit = model_config.max_position_embeddings
    if config.max_seq_len is not None and config.max_seq_len > limit:
        raise ConfigError(
            f"max_seq_len {config.max_seq_len} is beyond the model's {limit} positions;"
            " lower it, or raise the limit with --config_overrides '{\"max_position_embeddings\": ...}'"
        )
    return config.max_seq_len or limit
