"""A rank's half of a step: the model's shard, its KV cache, and the message that says what to compute."""

from __future__ import annotations

import math
from collections import abc

import numpy as np
import torch
from torch import Tensor

from atb_models import ops
from atb_models.engine.config import EngineConfig
from atb_models.engine.graph_capture import DecodeGraphs, check_agreement
from atb_models.engine.kv_pool import agree_on_kv_blocks, sequence_limit
from atb_models.engine.loading import load_shard
from atb_models.engine.message import Int32, decode_step, encode_step, is_decode
from atb_models.engine.scheduler import Row
from atb_models.layers.build import Build, ParallelGroup
from atb_models.machine import determinism
from atb_models.models.config import ModelConfig
from atb_models.models.decoder import Decoder, DecoderLayer, build_model
from atb_models.models.dtypes import kv_torch_dtype, torch_dtype
from atb_models.models.quantization import model_quantization
from atb_models.ops.kv_cache import LayerCache, make_cache
from atb_models.ops.top_logits import greedy_logits
from atb_models.ranks.group import RankGroup


class ModelRunner:
    """Builds and loads this rank's shard, then executes steps. Every rank has one; rank 0 also calls `run`.

    kv_blocks: see `agree_on_kv_blocks`, which comes first.
    """

    def __init__(self, config: EngineConfig, model_config: ModelConfig, group: RankGroup, kv_blocks: int) -> None:
        self.config, self.model_config, self.group, self.kv_blocks = config, model_config, group, kv_blocks
        dtype = torch_dtype(model_config.run_dtype(config.dtype))
        ops.bind(group.device.type)
        self.gives_top_logits = greedy_logits() > 0
        check_agreement(bool(config.graph_capture), group)
        if config.deterministic:
            determinism.switch_on(group.device.type)
        ranks = ParallelGroup(group.rank, group.size, group)
        build = Build(
            dtype,
            group.device,
            tensor=ranks,
            quantization=model_quantization(model_config, config.quantize),
            kv_dtype=kv_torch_dtype(config.kv_dtype),
        )
        self.model: Decoder = build_model(model_config, build)
        with group.doing("loading weights"):
            load_shard(self.model, config, model_config, group)
            group.barrier("loading")
        spare = kv_blocks if config.graph_capture else None  # behind the blocks that are given away
        self.caches = [self._layer_cache(layer, kv_blocks + (spare is not None)) for layer in self.model.layers]
        self._graphs = None if spare is None else self._capture(spare)

    def run(self, rows: abc.Sequence[Row], top_logits: int = 0) -> Tensor:
        """Rank 0: send the step to the other ranks and execute it -> logits [L, V] float32, or so many keys of each row
        (see `Decoder.forward`)."""
        message = encode_step(rows, top_logits)
        with self.group.doing("running a step"):
            self.group.send_step(message)
            return self.execute(message)

    @torch.inference_mode()
    def execute(self, message: Int32) -> Tensor:
        """Run the model on a step message; every rank gets the same logits, or keys."""
        if self._graphs is not None and is_decode(message):
            return self._graphs.run(message)
        return self.model(decode_step(message, self.config.block_size, self.group.device), self.caches)

    def _capture(self, spare: int) -> DecodeGraphs:
        config = self.config
        columns = -(-sequence_limit(config, self.model_config) // config.block_size)
        with self.group.doing("capturing graphs"):
            graphs = DecodeGraphs(self.model, self.caches, columns, config.block_size, spare)
            graphs.capture(min(config.max_batch_size, spare), log=self.group.rank == 0)
        return graphs

    def _layer_cache(self, layer: DecoderLayer, blocks: int) -> LayerCache:
        device = self.group.device
        return make_cache(
            layer.attn.planes, blocks, self.config.block_size, lambda shape, dtype: lazy_zeros(shape, dtype, device)
        )


def lazy_zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros; on a CPU the pages are taken only when first written, so that a large pool costs what is used of it."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    raw = np.zeros(math.prod(shape) * dtype.itemsize, dtype=np.uint8)
    return torch.from_numpy(raw).view(dtype).view(shape)


def serve(config: EngineConfig, model_config: ModelConfig, group: RankGroup) -> None:
    """The life of every rank but 0: execute steps until rank 0 closes."""
    kv_blocks = agree_on_kv_blocks(config, model_config, group)
    if kv_blocks is None:
        return
    runner = ModelRunner(config, model_config, group, kv_blocks)
    while (message := group.receive_step()) is not None:
        runner.execute(message)
