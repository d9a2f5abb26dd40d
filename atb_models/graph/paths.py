"""Which module of a model calls an operation."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


def storage_key(tensor: Tensor) -> int:
    """The same for all views of the same memory, for as long as that lives."""
    return int(tensor.untyped_storage()._cdata)


class ModulePaths:
    """While it is open, hooks on the model's modules follow where its forward is."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._stack: list[str] = []
        self._hooks: list[RemovableHandle] = []
        self._owners = {storage_key(p): name.rpartition(".")[0] for name, p in model.named_parameters()}

    def __enter__(self) -> ModulePaths:
        for name, module in self._model.named_modules():
            self._hooks.append(module.register_forward_pre_hook(self._entering(name)))
            self._hooks.append(module.register_forward_hook(self._leave, always_call=True))
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def current(self, args: tuple[Any, ...]) -> str:
        """The innermost running module, or the one within it that owns all of its parameters among `args`.

        The second is needed for methods other than `forward`, such as a norm's `add`.
        """
        path = self._stack[-1] if self._stack else ""
        owners = {self._owners.get(storage_key(arg), "") for arg in args if isinstance(arg, Tensor)}
        within = [owner for owner in owners if owner and (not path or owner.startswith(f"{path}."))]
        return within[0] if len(within) == 1 else path

    @property
    def running(self) -> bool:
        """Whether the model's forward is being executed."""
        return bool(self._stack)

    def _entering(self, name: str) -> Any:
        return lambda *_: self._stack.append(name)

    def _leave(self, *_: object) -> None:
        self._stack.pop()
