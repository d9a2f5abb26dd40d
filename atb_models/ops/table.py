"""The operation table: what an operation is, and how a backend takes it over."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from atb_models.ops.cost import Cost

Body = Callable[..., Any]
Wrap = Callable[["Op", Body, tuple[Any, ...]], Any]


class Op:
    """A named operation. `reference` is its body in torch; `run` is what a call executes on the bound backend.

    `cost(result, *args)` prices a call. The body on meta tensors is the rule for the result's shape and the workspace;
    `shape` stands in for it where the body must read values. `prepare(weight)` lays a loaded weight out as `run` wants
    it, once; its shape stays.
    """

    def __init__(self, name: str, reference: Body, cost: Callable[..., Cost], shape: Body | None) -> None:
        self.name = name
        self.reference = reference
        self.reference_shape = shape
        self.cost = cost
        self.run, self.shape = reference, shape
        self.prepare: Callable[[Tensor], Tensor] = _as_it_is
        self.backend = "reference"
        self.__doc__ = reference.__doc__

    def __call__(self, *args: Any) -> Any:
        return self.run(*args)

    def __repr__(self) -> str:
        return f"<op {self.name} on {self.backend}>"


def _as_it_is(weight: Tensor) -> Tensor:
    return weight


BlockShape = Callable[[int, int, int, torch.dtype], tuple[int, int, int]]


def _plain_block(block_size: int, kv_heads: int, head_dim: int, dtype: torch.dtype) -> tuple[int, int, int]:
    return block_size, kv_heads, head_dim


TABLE: dict[str, Op] = {}
_block_shape: BlockShape = _plain_block

# Modules that serve operations natively, by device type. A device without one runs the reference.
BACKENDS = {"cpu": "atb_models.ops.cpu", "npu": "atb_models.ops.npu"}


def op(name: str, *, cost: Callable[..., Cost], shape: Body | None = None) -> Callable[[Body], Op]:
    """Decorator: enter the function below into the table as the definition and reference body of `name`."""

    def define(reference: Body) -> Op:
        assert name not in TABLE, f"operation {name} is defined twice"
        TABLE[name] = Op(name, reference, cost, shape)
        return TABLE[name]

    return define


def bind(backend: str) -> None:
    """Let `backend` (a device type, or "reference") serve the operations it has; the reference serves the rest.

    A backend is a module with `OPS`, a dict from operation name to a function of the definition's signature. It may
    have `SHAPES`, a dict of the shape rules that differ from the definition's in their workspace, `PREPARE`, from
    operation name to that operation's `prepare`, and `block_shape`, see `kv_block_shape`.
    Called before a model is built; the table is the process's, so all models of a process run on one device type.
    """
    module: ModuleType | None = importlib.import_module(BACKENDS[backend]) if backend in BACKENDS else None
    native: dict[str, Body] = module.OPS if module else {}
    shapes: dict[str, Body] = getattr(module, "SHAPES", {})
    prepare: dict[str, Callable[[Tensor], Tensor]] = getattr(module, "PREPARE", {})
    unknown = (native.keys() | prepare.keys() | shapes.keys()) - TABLE.keys()
    assert not unknown, f"backend {backend} serves operations that are not in the table: {sorted(unknown)}"
    for operation in TABLE.values():
        operation.run = native.get(operation.name, operation.reference)
        operation.shape = shapes.get(operation.name, operation.reference_shape)
        operation.prepare = prepare.get(operation.name, _as_it_is)
        operation.backend = backend if operation.name in native else "reference"
    global _block_shape
    _block_shape = getattr(module, "block_shape", _plain_block)


def kv_block_shape(block_size: int, kv_heads: int, head_dim: int, dtype: torch.dtype) -> tuple[int, int, int]:
    """[S, M, D] of a KV block on the bound backend; D may be wider than the heads.

    Raises ConfigError for what the backend's attention does not take.
    """
    return _block_shape(block_size, kv_heads, head_dim, dtype)


def operations() -> Iterator[Op]:
    """The operations of the table in the order of their definition."""
    return iter(TABLE.values())


_recording = False


@contextmanager
def recorded(wrap: Wrap) -> Iterator[None]:
    """While it is open every call `operation(*args)` becomes `wrap(operation, run, args)`, run being what was bound.

    The bodies are swapped in the table and put back, so that calls cost nothing more when nobody records.
    """
    global _recording
    assert not _recording, "a recording is open already"
    bound = [(operation, operation.run) for operation in TABLE.values()]
    _recording = True
    try:
        for operation, run in bound:
            operation.run = _wrapped(wrap, operation, run)
        yield
    finally:
        for operation, run in bound:
            operation.run = run
        _recording = False


def _wrapped(wrap: Wrap, operation: Op, run: Body) -> Body:
    return lambda *args: wrap(operation, run, args)
