"""What happens to memory while tensors are computed: which storages are born, written and freed, and work on them."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from atb_models.graph.paths import storage_key


class StorageMode(TorchDispatchMode):
    """Follows every storage that torch's functions return while it is active.

    `live`: bytes of those that have not been freed; `peak`: the most there was of it since it was last set.
    `written`: keys of the storages that were written since it was last cleared. `on_work(function)` is called for each
    torch function that does more than make a view.
    """

    def __init__(self, known: list[Tensor], on_work: Callable[[str], None]) -> None:
        """known: tensors that exist before, whose storages are not counted."""
        super().__init__()
        self.live = self.peak = 0
        self.written: set[int] = set()
        self._on_work = on_work
        self._known = known  # keeps them alive, and so their keys unique
        self._seen = {storage_key(tensor) for tensor in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        outputs = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
        written = {storage_key(x) for x in self._written_by(func, args, kwargs or {})}
        inputs = {storage_key(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        if written or not {storage_key(x) for x in outputs} <= inputs:
            self._on_work(str(func))
        self.written |= written
        for tensor in outputs:
            self._follow(tensor)
        return result

    @staticmethod
    def _written_by(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
        """The arguments that the function's schema says it writes."""
        written = []
        for place, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                value = args[place] if place < len(args) else kwargs.get(argument.name)
                written += [x for x in tree_leaves(value) if isinstance(x, Tensor)]
        return written

    def _follow(self, tensor: Tensor) -> None:
        storage, key = tensor.untyped_storage(), storage_key(tensor)
        if key in self._seen:
            return
        size = storage.nbytes()
        self._seen.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._free, key, size).atexit = False

    def _free(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.live -= size
