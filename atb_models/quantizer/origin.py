"""The checkpoint that is read: its configuration, its tensors, and which of them are weights of linear maps."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from atb_models.files import read_bytes
from atb_models.graph.meta import meta_model
from atb_models.json_file import read_json
from atb_models.layers.parameter import fillings
from atb_models.models.config import ModelConfig
from atb_models.models.config_reader import load_model_config
from atb_models.models.dtypes import torch_dtype
from atb_models.models.weights.checkpoint import Checkpoint, open_checkpoint
from atb_models.models.weights.loader import check_weights
from atb_models.models.weights.names import CheckpointTensor
from atb_models.models.weights.opening import open_weights
from atb_models.models.weights.source import WeightSource
from atb_models.models.weights.weight_map import checkpoint_tensors


@dataclass(frozen=True)
class Origin:
    """A checkpoint of floats, or one that is quantised already (config.scheme says how).

    raw: the content of config.json. source: the tensors, of a quantised one in the internal form.
    """

    folder: Path
    raw: dict[str, Any]
    config: ModelConfig
    checkpoint: Checkpoint
    source: WeightSource

    @property
    def dtype(self) -> torch.dtype:
        """What the model computes in: what config.json says, or else the type of the norms."""
        if self.config.torch_dtype is not None:
            return torch_dtype(self.config.torch_dtype)
        return self.checkpoint.dtype("model.norm.weight")

    @cached_property
    def tensors(self) -> tuple[CheckpointTensor, ...]:
        """Those that the model has a place for, in the usual order of files, under the names of floats."""
        return tuple(checkpoint_tensors(self.config))

    @cached_property
    def linears(self) -> tuple[CheckpointTensor, ...]:
        """The weights of linear maps within layers, all but those of routers and gates."""
        every = fillings(meta_model(replace(self.config, scheme=None), torch.float32, quantize="w8a16"))
        return tuple(one for one in self.tensors if every[one.parameter].weight.layout.quantized)

    @cached_property
    def other_linears(self) -> tuple[str, ...]:
        """The paths of the linear maps that are never quantised: routers, gates and the head."""
        inside = {one.name for one in self.linears}
        outside = (one for one in self.tensors if one.name.endswith(".weight") and one.name not in inside)
        maps = [one.name for one in outside if len(self.source.shape(one.name)) == 2]
        return tuple(name.removesuffix(".weight") for name in maps if name != "model.embed_tokens.weight")

    def fingerprint(self) -> dict[str, Any]:
        """What tells this checkpoint from another: its configuration, and size and time of each file of weights."""
        places = {Path(self.checkpoint.where(name)) for name in self.checkpoint.names()}
        files = {path.name: path.stat() for path in sorted(places)}
        return {
            "config": hashlib.sha256(read_bytes(self.folder / "config.json")).hexdigest(),
            "files": {name: [status.st_size, status.st_mtime_ns] for name, status in files.items()},
        }


@contextmanager
def opened(folder: Path) -> Iterator[Origin]:
    """The checkpoint in a folder.

    Raises ConfigError for a format that is not read, CheckpointError where a tensor is missing, of another shape than
    config.json makes it, or unknown.
    """
    raw = read_json(folder / "config.json")
    config = load_model_config(folder, log=False)
    model = meta_model(config, torch.float32)
    with closing(open_weights(folder, "auto", model, config)) as weights:
        check_weights(model, config, weights)
    with open_checkpoint(folder, quantized=config.scheme is not None) as checkpoint:
        source = checkpoint if config.scheme is None else config.scheme.open(checkpoint)
        yield Origin(folder, raw, config, checkpoint, source)
