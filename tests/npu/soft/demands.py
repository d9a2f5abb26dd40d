"""Conditions of the operators: see `contracts`."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor

HALF = (torch.float16, torch.bfloat16)
FLOATS = (*HALF, torch.float32)


class ContractError(RuntimeError):
    """A call that the operator does not support."""


def need(holds: bool, what: str) -> None:
    """A condition of the operator that is being checked."""
    if not holds:
        raise ContractError(what)


def plain(call: SimpleNamespace, *names: str) -> None:
    """These optional arguments are not used here, so nothing is known of them."""
    for name in names:
        need(getattr(call, name) is None, f"{name} is not modelled here")


def contiguous(**tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        need(tensor.is_contiguous(), f"{name} must be contiguous, its strides are {tensor.stride()}")
