"""The operation table: what an operation is, and how a backend takes it over."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch

from atb_models.errors import ConfigError
from atb_models.ops.cost import Cost
from atb_models.ops.plane import Plane
from atb_models.ops.weight import NIBBLES, Layout, Packing

Body = Callable[..., Any]
Wrap = Callable[["Op", Body, tuple[Any, ...]], Any]
Operands = Callable[..., dict[str, Any]]


class Op:
    """A named operation. `reference` is its body in torch; `run` is what a call executes on the bound backend.

    `cost(result, *args)` prices a call. The body on meta tensors is the rule for the result's shape and the workspace;
    `shape` stands in for it where the body must read values. `operands(*args)` names what a call works on, as graphs
    and profiles show it: the arguments, where none is a record of which the operation takes a part.
    `packings`: how the bound backend stores the weights among its arguments, by name; the others as they are.
    `in_parts`: its body calls other operations, and where no backend serves it whole, graphs and profiles show these in
    its place. Without a cost they always do: while they are made its parts run.
    `products`: the arguments that are multiplied with each other, whose data types are those of its arithmetic; None:
    all of them.
    """

    def __init__(
        self,
        name: str,
        reference: Body,
        cost: Callable[..., Cost] | None,
        shape: Body | None,
        operands: Operands | None,
        in_parts: bool,
        products: tuple[str, ...] | None,
    ) -> None:
        self.name = name
        self.reference = reference
        self.reference_shape = shape
        assert cost is not None or in_parts, f"{name} has neither a cost nor parts"
        self.is_shown = cost is not None
        self.cost = cost or _not_shown
        self.run, self.shape = reference, shape
        self.operands: Operands = operands or self._arguments
        self.packings: Mapping[str, Packing] = {}
        self.in_parts = in_parts
        self.products = products
        self.backend = "reference"
        self.__doc__ = reference.__doc__

    def __call__(self, *args: Any) -> Any:
        return self.run(*args)

    def __repr__(self) -> str:
        return f"<op {self.name} on {self.backend}>"

    @property
    def is_served(self) -> bool:
        """Whether the bound backend has a body of its own for it."""
        return self.backend != "reference"

    @cached_property
    def parameters(self) -> tuple[str, ...]:
        """The names of its arguments, in order."""
        return tuple(inspect.signature(self.reference).parameters)

    def packed(self, plain: Mapping[str, Layout]) -> dict[str, Layout]:
        """How the bound backend stores its weights that would lie so, by argument.

        Packed if the backend has a packing that takes it; where one body serves the whole operation only if all of its
        weights are taken and stored alike. Else 4 bits as nibbles.
        """
        whole = not self.in_parts or self.is_served
        alike = len({layout.kind for layout in plain.values()}) == 1
        taken = {name for name, layout in plain.items() if name in self.packings and self.packings[name].takes(layout)}
        if whole and (len(taken) < len(plain) or not alike):
            taken = set()
        return {name: self._stored(name, layout, name in taken) for name, layout in plain.items()}

    def _stored(self, argument: str, plain: Layout, taken: bool) -> Layout:
        if taken:
            return self.packings[argument].layout(plain)
        return NIBBLES.layout(plain) if NIBBLES.takes(plain) else plain

    def _arguments(self, *args: Any) -> dict[str, Any]:
        return dict(zip(self.parameters, args, strict=False))


def _not_shown(*_: object) -> Cost:
    raise AssertionError("the parts of the operation have costs")


PlaneShape = Callable[[int, Plane], tuple[int, ...]]


def _plain_shape(block_size: int, plane: Plane) -> tuple[int, ...]:
    return plane.block_shape(block_size)


@dataclass(frozen=True)
class Backend:
    """What a device type serves natively.

    bodies: by operation, functions of the definition's signature. shapes: by operation, its shape rule; without one
    the definition's is taken, or else the body is called with meta tensors: one that calls a library must have a rule.
    packings: by operation, how weights among its arguments are stored. plane_shape: see `kv_plane_shape`.
    quantized: whether its operations take weights of integers with scales. float32: whether its attention takes
    activations of 32 bits. latent_attention: whether it serves that, be it by the reference. group_step: see the
    function.
    """

    bodies: Mapping[str, Body]
    shapes: Mapping[str, Body] = field(default_factory=dict)
    packings: Mapping[str, Mapping[str, Packing]] = field(default_factory=dict)
    plane_shape: PlaneShape = _plain_shape
    quantized: bool = True
    float32: bool = True
    latent_attention: bool = True
    group_step: int = 8


TABLE: dict[str, Op] = {}
_bound = ("reference", Backend({}))

# Modules whose `backend()` serves operations natively, by device type. A device without one runs the reference.
BACKENDS = {"cpu": "atb_models.ops.cpu", "npu": "atb_models.ops.npu"}
# Modules whose `layouts()` tells how a device lays out weights and cache where its libraries may be missing.
LAYOUTS = {"npu": "atb_models.ops.npu_layout"}


def op(
    name: str,
    *,
    cost: Callable[..., Cost] | None,
    shape: Body | None = None,
    operands: Operands | None = None,
    in_parts: bool = False,
    products: tuple[str, ...] | None = None,
) -> Callable[[Body], Op]:
    """Decorator: enter the function below into the table as the definition and reference body of `name`."""

    def define(reference: Body) -> Op:
        assert name not in TABLE, f"operation {name} is defined twice"
        TABLE[name] = Op(name, reference, cost, shape, operands, in_parts, products)
        return TABLE[name]

    return define


def bind(backend: str) -> None:
    """Let `backend` (a device type, or "reference") serve the operations it has; the reference serves the rest.

    Called before a model is built; the table is the process's, so all models of a process run on one device type.
    """
    _serve(backend, importlib.import_module(BACKENDS[backend]).backend() if backend in BACKENDS else Backend({}))


@contextmanager
def laid_out_for(device_type: str | None) -> Iterator[None]:
    """Within it traces are of a device of that type, whatever this machine is; nothing may run. None: what is bound.

    For plans: weights and cache lie as on that device. Afterwards the operations are bound as before.
    """
    before = _bound
    if device_type in LAYOUTS:
        # planned, whether it runs there or not
        _serve(device_type, replace(_layouts(device_type), quantized=True, latent_attention=True))
    elif device_type is not None:
        bind(device_type)
    try:
        yield
    finally:
        _serve(*before)


def _serve(backend: str, native: Backend) -> None:
    unknown = (native.bodies.keys() | native.packings.keys() | native.shapes.keys()) - TABLE.keys()
    assert not unknown, f"backend {backend} serves operations that are not in the table: {sorted(unknown)}"
    for operation in TABLE.values():
        operation.run = native.bodies.get(operation.name, operation.reference)
        operation.shape = native.shapes.get(operation.name, operation.reference_shape)
        operation.packings = native.packings.get(operation.name, {})
        operation.backend = backend if operation.name in native.bodies else "reference"
    global _bound
    _bound = (backend, native)


def kv_plane_shape(block_size: int, plane: Plane) -> tuple[int, ...]:
    """The shape of a block of `plane` on the bound backend; its last dimension may be wider than the plane.

    Raises ConfigError for what the backend's attention does not take.
    """
    return _bound[1].plane_shape(block_size, plane)


def group_step() -> int:
    """Ranks cut the inputs of weights with groups, or of 4 bits, at multiples of this on the bound backend, so that no
    group is cut into pieces that it has no product for."""
    return _bound[1].group_step


def takes_quantized(device_type: str | None = None) -> bool:
    """Whether the operations of a device type take weights of integers with scales; None: of what is bound."""
    if device_type is None:
        return _bound[1].quantized
    return device_type not in LAYOUTS or _layouts(device_type).quantized


def takes_latent_attention(device_type: str | None = None) -> bool:
    """Whether a device type serves latent attention; None: what is bound."""
    if device_type is None:
        return _bound[1].latent_attention
    return device_type not in LAYOUTS or _layouts(device_type).latent_attention


def _layouts(device_type: str) -> Backend:
    layouts: Backend = importlib.import_module(LAYOUTS[device_type]).layouts()
    return layouts


def check_quantized(method: str, *, asked: bool) -> None:
    """Raise ConfigError where the bound backend takes no weights of integers with scales, which `method` has.

    asked: by the user; else the checkpoint's weights are so.
    """
    if takes_quantized():
        return
    if asked:
        raise ConfigError(f"{_bound[0]} takes no quantised weights yet, and quantize is {method}; leave it out there")
    raise ConfigError(
        f"{_bound[0]} takes no quantised weights yet, and the checkpoint's are {method}; take the float weights that"
        " they were made from, or another device"
    )


def check_dtype(dtype: torch.dtype) -> None:
    """Raise ConfigError for activations that the attention of the bound backend does not take."""
    if dtype == torch.float32 and not _bound[1].float32:
        raise ConfigError(
            f"dtype fp32: attention on {_bound[0]} takes fp16 and bf16; use --dtype fp16, or --device cpu"
        )


def check_latent_attention() -> None:
    """Raise ConfigError where the bound backend does not serve latent attention."""
    if not takes_latent_attention():
        raise ConfigError(
            f"{_bound[0]} serves no latent attention yet, which the model has (kv_lora_rank in its config.json); use"
            " another device, such as --device cpu"
        )


def operations() -> Iterator[Op]:
    """The operations of the table in the order of their definition."""
    return iter(TABLE.values())


@contextmanager
def in_parts(*composites: Op) -> Iterator[None]:
    """Within it the parts of these run, and can be recorded, although the bound backend serves them whole."""
    bound = [(operation, operation.run, operation.backend) for operation in composites]
    for operation in composites:
        assert operation.in_parts, f"{operation.name} has no parts"
        operation.run, operation.backend = operation.reference, "reference"
    try:
        yield
    finally:
        for operation, run, backend in bound:
            operation.run, operation.backend = run, backend


_recording = False


@contextmanager
def recorded(wrap: Wrap) -> Iterator[None]:
    """While it is open every call `operation(*args)` becomes `wrap(operation, run, args)`, run being what was bound.

    Operations in parts that no backend serves whole are run as they are, and so are those that are never shown, whoever
    serves them: their parts are wrapped.

    The bodies are swapped in the table and put back, so that calls cost nothing more when nobody records.
    """
    global _recording
    assert not _recording, "a recording is open already"
    with in_parts(*(operation for operation in TABLE.values() if not operation.is_shown)):
        shown = [operation for operation in TABLE.values() if not operation.in_parts or operation.is_served]
        bound = [(operation, operation.run) for operation in shown]
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
