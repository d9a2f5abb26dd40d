"""Random weights in place of a checkpoint, the same at every tp: a function of a tensor's name and global index."""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor, nn

from atb_models.layers.parameter import fillings
from atb_models.models.config import ModelConfig
from atb_models.models.dtypes import torch_dtype
from atb_models.models.weights.slices import copy_slice, slice_shape
from atb_models.models.weights.weight_map import checkpoint_tensors

PERIOD = 1_048_573  # a prime: rows of any width are shifted against each other


class DummyWeights:
    """Element i of tensor `name` is base[(hash(name) + i) mod PERIOD] * initializer_range; norms are 1."""

    def __init__(self, model: nn.Module, config: ModelConfig) -> None:
        filled = fillings(model)
        self._shapes = {
            tensor.name: filled[tensor.parameter].parts[tensor.role].shape for tensor in checkpoint_tensors(config)
        }
        self.deviation = config.initializer_range
        self._dtype = torch_dtype(config.torch_dtype or "bf16")
        normals = np.random.default_rng(20030).standard_normal(PERIOD, dtype=np.float32)
        self._base = torch.from_numpy(normals * np.float32(config.initializer_range)).to(self._dtype)
        self._tables = {self._dtype: self._base}

    def names(self) -> set[str]:
        """The names of all tensors."""
        return set(self._shapes)

    def spare(self) -> frozenset[str]:
        return frozenset()

    def shape(self, name: str) -> tuple[int, ...]:
        """The tensor's whole shape."""
        return self._shapes[name]

    def where(self, name: str) -> str:
        """For error messages."""
        return "the dummy weights"

    def read_into(self, name: str, dim: int | None, start: int, stop: int, target: Tensor) -> int:
        """Fill `target` with [start, stop) along `dim` of the tensor; dim None: all of it. All numbers are finite."""
        if name.endswith("norm.weight"):
            target.fill_(1.0)
            return 0
        if target.dtype not in self._tables:
            self._tables[target.dtype] = self._base.to(target.dtype)
        table = self._tables[target.dtype]
        origin = int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little") % PERIOD

        def read_run(first: int, out: Tensor) -> bool:
            done, position = 0, (origin + first) % PERIOD
            while done < out.numel():
                count = min(PERIOD - position, out.numel() - done)
                out[done : done + count].copy_(table[position : position + count])
                done, position = done + count, 0
            return False

        copy_slice(read_run, self._shapes[name], target.dtype, dim, start, stop, target)
        return 0

    def read(self, name: str, dim: int | None = None, start: int = 0, stop: int = 0) -> Tensor:
        """The slice as a new CPU tensor."""
        target = torch.empty(slice_shape(self._shapes[name], dim, start, stop), dtype=self._dtype)
        self.read_into(name, dim, start, stop, target)
        return target

    def close(self) -> None:
        """Nothing is held open."""
