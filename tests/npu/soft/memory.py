"""The memory of the pretend devices, which is the host's."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor


def as_cpu(tensor: Tensor) -> Tensor:
    """A CPU tensor over the memory of one on the device."""
    storage, view = tensor.untyped_storage(), torch.empty(0, dtype=tensor.dtype)
    if storage.nbytes() == 0:
        return view.set_(torch.UntypedStorage(0), 0, tensor.size(), tensor.stride())
    memory = (ctypes.c_char * storage.nbytes()).from_address(storage.data_ptr())
    base = torch.frombuffer(memory, dtype=torch.uint8).untyped_storage()
    return view.set_(base, tensor.storage_offset(), tensor.size(), tensor.stride())
