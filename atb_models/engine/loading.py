"""A rank's weights: read, and what is wrong with their numbers told once for all ranks."""

from __future__ import annotations

import logging

import torch
from torch import nn

from atb_models.engine.config import EngineConfig
from atb_models.errors import CheckpointError
from atb_models.graph import meta_model
from atb_models.models.config import ModelConfig
from atb_models.models.dtypes import torch_dtype
from atb_models.models.weights.finite import NotFinite, summary
from atb_models.models.weights.loader import check_weights, load_weights
from atb_models.models.weights.opening import open_weights
from atb_models.models.weights.weight_map import checkpoint_tensors
from atb_models.ranks.group import RankGroup

logger = logging.getLogger(__name__)


def load_shard(model: nn.Module, config: EngineConfig, model_config: ModelConfig, group: RankGroup) -> None:
    """Fill this rank's shard; rank 0 shows a bar, and warns of weights that are infinite or no numbers.

    Raises CheckpointError naming the file and the tensor, RankError when another rank has died.
    """
    log = group.rank == 0
    source = open_weights(config.folder, config.load_format, model, model_config, config.quantize, log=log)
    try:
        found = load_weights(model, model_config, source, progress=log, check=group.check)
    finally:
        source.close()
    found = _of_all_ranks(found, model_config, group)
    if found and group.rank == 0:
        dtype = model_config.run_dtype(config.dtype)
        where = source.where(found[0].name)
        logger.warning("%s: in %s %s; answers may mean nothing", where, dtype, summary(found))


def check_tables(config: EngineConfig, model_config: ModelConfig) -> None:
    """Raise CheckpointError where the checkpoint's tensors are not those of its config.json; no weight is read.

    For a model that does not fit: it may be no larger than its files, and its configuration wrong.
    """
    if config.load_format == "dummy":
        return
    model = meta_model(model_config, torch_dtype(model_config.run_dtype(config.dtype)), quantize=config.quantize)
    try:
        source = open_weights(config.folder, config.load_format, model, model_config, config.quantize)
    except CheckpointError:  # there may be no weights yet
        return
    try:
        check_weights(model, model_config, source)
    finally:
        source.close()


def _of_all_ranks(found: list[NotFinite], config: ModelConfig, group: RankGroup) -> list[NotFinite]:
    """What the ranks found together, in the order of the checkpoint's tensors; the same on every rank."""
    if group.minimum(-len(found)) == 0:
        return []
    names = [tensor.name for tensor in checkpoint_tensors(config)]
    places = {name: place for place, name in enumerate(names)}
    table = torch.zeros(len(names), 2, dtype=torch.int64)
    for name, start, count in found:
        table[places[name]] = torch.tensor([start, count])
    of_ranks = group.numbers_of_all(table.flatten()).view(group.size, -1, 2).transpose(0, 1).tolist()
    return [
        NotFinite(name, start, count)
        for name, ranks in zip(names, of_ranks, strict=True)
        for start, count in ranks
        if count
    ]
