"""The operation table: what an operation is, and how a backend takes it over."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any


class Op:
    """A named operation. `reference` is its body in torch; `run` is what a call executes on the bound backend.

    Every call of every operation passes through `run`, so a recorder that swaps it for a while sees the whole graph
    and costs nothing once it has put it back.
    """

    def __init__(self, name: str, reference: Callable[..., Any]) -> None:
        self.name = name
        self.reference = reference
        self.run = reference
        self.backend = "reference"
        self.__doc__ = reference.__doc__

    def __call__(self, *args: Any) -> Any:
        return self.run(*args)

    def __repr__(self) -> str:
        return f"<op {self.name} on {self.backend}>"


TABLE: dict[str, Op] = {}

# Modules that serve operations natively, by device type. A device without one runs the reference.
BACKENDS = {"cpu": "atb_models.ops.cpu"}


def op(name: str) -> Callable[[Callable[..., Any]], Op]:
    """Decorator: enter the function below into the table as the definition and reference body of `name`."""

    def define(reference: Callable[..., Any]) -> Op:
        assert name not in TABLE, f"operation {name} is defined twice"
        TABLE[name] = Op(name, reference)
        return TABLE[name]

    return define


def bind(backend: str) -> None:
    """Let `backend` (a device type, or "reference") serve the operations it has; the reference serves the rest.

    A backend is a module with `OPS`, a dict from operation name to a function of the definition's signature.
    Called before a model is built; the table is the process's, so all models of a process run on one device type.
    """
    module: ModuleType | None = importlib.import_module(BACKENDS[backend]) if backend in BACKENDS else None
    native: dict[str, Callable[..., Any]] = module.OPS if module else {}
    unknown = native.keys() - TABLE.keys()
    assert not unknown, f"backend {backend} serves operations that are not in the table: {sorted(unknown)}"
    for operation in TABLE.values():
        operation.run = native.get(operation.name, operation.reference)
        operation.backend = backend if operation.name in native else "reference"


def operations() -> Iterator[Op]:
    """The operations of the table in the order of their definition."""
    return iter(TABLE.values())
