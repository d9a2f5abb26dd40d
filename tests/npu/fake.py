"""Checking calls on fake tensors, which have shapes and dtypes but no values."""

from __future__ import annotations

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from tests.npu.soft.contracts import bound, check


class ContractMode(TorchDispatchMode):
    """Checks every call of torch_npu's operators while it is active; `calls` lists their names."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace in ("npu", "atb"):
            check(func, bound(func, args, kwargs or {}))
            self.calls.append(func._schema.name)
        return func(*args, **(kwargs or {}))
