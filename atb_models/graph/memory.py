"""What happens to memory while tensors are computed: which storages are born, written and freed, and work on them."""

from __future__ import annotations

import itertools
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
    `written`: identities of the storages that were written since it was last cleared. `on_work(function)` is called
    for each torch function that does more than make a view: writes, makes new memory or reads values on the host.
    """

    def __init__(self, known: list[Tensor], on_work: Callable[[str], None]) -> None:
        """known: tensors that exist before, whose storages are not counted."""
        super().__init__()
        self.live = self.peak = 0
        self.written: set[int] = set()
        self._on_work = on_work
        self._known = known  # keeps them alive
        self._numbers = itertools.count()
        # by key, of those that live: an allocator gives the key of a dead storage again
        self._identities: dict[int, int] = {}
        for tensor in known:
            self._identities.setdefault(storage_key(tensor), next(self._numbers))

    def identity(self, tensor: Tensor) -> int:
        """The same for all views of the same memory, and never used for other memory."""
        key = storage_key(tensor)
        if key not in self._identities:
            self._follow(tensor, key)
        return self._identities[key]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        outputs = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
        written = {self.identity(x) for x in self._written_by(func, args, kwargs or {})}
        born = any(storage_key(x) not in self._identities for x in outputs)
        if written or born or not outputs:
            self._on_work(str(func))
        self.written |= written
        for tensor in outputs:
            self.identity(tensor)
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

    def _follow(self, tensor: Tensor, key: int) -> None:
        storage = tensor.untyped_storage()
        size = storage.nbytes()
        self._identities[key] = next(self._numbers)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._free, key, size).atexit = False

    def _free(self, key: int, size: int) -> None:
        del self._identities[key]
        self.live -= size
