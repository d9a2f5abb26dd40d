"""Running torch's and torch_npu's operators on the pretend device: every one is given to the CPU on the same memory.

Dispatch, schemas, argument parsing, allocation, streams and devices are torch_npu's own. Only where one of its kernels
would call CANN another one stands, which sees the arguments as CPU tensors.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from tests.npu.soft import attention_kernels, collectives, counts, graphs, integer_kernels, kernels
from tests.npu.soft.contracts import bound, check
from tests.npu.soft.demands import ContractError, need
from tests.npu.soft.memory import as_cpu

DEVICE = "PrivateUse1"
KERNELS = (kernels, attention_kernels, integer_kernels)
# Memory and identity: torch_npu's own kernels do these without an operator of CANN.
KEPT = {
    *("empty.memory_format", "empty_strided", "empty_like", "resize_", "record_stream", "is_pinned", "_pin_memory"),
    *("set_", "set_.source_Storage", "set_.source_Storage_storage_offset", "set_.source_Tensor"),
    *("_copy_from", "_copy_from_and_resize"),
}
# Operators that may mix devices: a copy, and indices on the host.
MIXED = {"copy_", "_to_copy", "index.Tensor", "index_put_", "_index_put_impl_"}
# The size of their result is a value, so the host waits.
WAITING = {"nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "repeat_interleave.Tensor"}

_libraries: list[torch.library.Library] = []


def install() -> None:
    """Take over the device's operators, once in a process, after torch_npu was imported."""
    graphs.install()
    own = {namespace: torch.library.Library(namespace, "IMPL") for namespace in ("aten", "npu", "atb")}
    _libraries.extend([*own.values(), collectives.install()])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a kernel is replaced
        for full in torch._C._dispatch_get_registrations_for_dispatch_key(DEVICE):
            namespace, _, name = full.partition("::")
            base, _, overload = name.partition(".")
            op = getattr(getattr(getattr(torch.ops, namespace), base, None), overload or "default", None)
            run = None if op is None or namespace not in own else _kernel(op, namespace, name)
            if run is not None:
                own[namespace].impl(name, run, DEVICE)
                if torch._C._dispatch_has_kernel_for_dispatch_key(full, f"Autograd{DEVICE}"):
                    own[namespace].impl(name, _without_autograd(op), f"Autograd{DEVICE}")


def _kernel(op: Any, namespace: str, name: str) -> Callable[..., Any] | None:
    """What replaces torch_npu's kernel; None: nothing does."""
    if namespace != "aten":
        return _native(op)
    if name in ("contiguous", "_local_scalar_dense"):
        return _contiguous if name == "contiguous" else _item
    is_view = any(r.alias_info is not None and not r.alias_info.is_write for r in op._schema.returns)
    return None if is_view or name in KEPT else _aten(op, name)


def _without_autograd(op: Any) -> Callable[..., Any]:
    """In place of torch_npu's autograd kernels, some of which call CANN themselves."""

    def run(*args: Any, **kwargs: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return op(*args, **kwargs)

    return run


def _native(op: Any) -> Callable[..., Any]:
    """An operator of torch_npu: its contract, then its kernel."""
    name = op._schema.name

    def compute(given: dict[str, Any]) -> Any:
        function = name.partition("::")[2]
        module = next(module for module in KERNELS if hasattr(module, function))
        return getattr(module, function)(SimpleNamespace(**given))

    def run(*args: Any, **kwargs: Any) -> Any:
        call = bound(op, args, kwargs)
        check(op, call)
        if name.startswith("npu::_"):  # asks for a size: nothing runs on the device
            shapes = _Lowered("meta")
            return shapes.up(compute(shapes.down(vars(call))))
        if graphs.DEVICE.updated is None:
            counts.OPERATORS[name] += 1
        lowered = _Lowered()
        given = lowered.down(vars(call))
        if lowered.strangers:
            raise ContractError(f"{name}: tensors on the host {lowered.strangers}")
        if not graphs.DEVICE.records:
            return lowered.up(_now(lambda: compute(given)))
        return _kept(name, lambda: compute(given), lambda meta: meta.get("out") or op(**meta), vars(call))

    return run


def _aten(op: Any, name: str) -> Callable[..., Any]:
    """An operator of torch: the CPU's."""

    def run(*args: Any, **kwargs: Any) -> Any:
        counts.OPERATORS[f"aten::{name}"] += 1
        if "pin_memory" in kwargs:
            kwargs["pin_memory"] = None
        lowered = _Lowered()
        own, named = lowered.down((args, kwargs))
        if lowered.strangers and lowered.own and name not in MIXED:
            raise RuntimeError(f"{op}: tensors on the device and on the host {lowered.strangers}")
        to_host = bool(lowered.own) and named.get("device") is not None and lowered.target is None
        _count_transfers(name, to_host, lowered, own, named)
        if graphs.DEVICE.records:
            return _kept(
                f"aten::{name}", lambda: op(*own, **named), lambda meta: op(*meta[0], **meta[1]), (args, kwargs)
            )
        result = _now(lambda: op(*own, **named))
        return result if to_host else lowered.up(result)

    return run


def _now(compute: Callable[[], Any]) -> Any:
    graphs.DEVICE.idle()
    return compute()


def _kept(name: str, compute: Callable[[], Any], shapes: Callable[[Any], Any], given: Any) -> Any:
    """Keep a call for the replays of a graph -> its results, which are memory without a value."""
    meta = _Lowered("meta")
    result = meta.up(shapes(meta.down(given)))
    places = [as_cpu(one) for one in tree_leaves(result) if isinstance(one, Tensor)]

    def run() -> None:
        values = [one for one in tree_leaves(compute()) if isinstance(one, Tensor)]
        for place, value in zip(places, values, strict=True):
            if value.data_ptr() != place.data_ptr():
                need((value.shape, value.dtype) == (place.shape, place.dtype), f"{name}: {value.shape}, {place.shape}")
                place.copy_(value)

    graphs.DEVICE.keep(graphs.Call(name, run))
    return result


def _count_transfers(name: str, to_host: bool, lowered: _Lowered, args: Any, kwargs: Any) -> None:
    is_copy = name == "copy_"
    if to_host or (is_copy and not lowered.is_own(args[0])):
        counts.copied("to_host")
        counts.waited("copy to the host")
    elif name in ("copy_", "_to_copy") and not lowered.is_own(args[is_copy]):
        counts.copied("to_device")
        if not (args[2] if len(args) > 2 else kwargs.get("non_blocking")):
            counts.waited("blocking copy to the device")
        elif not args[is_copy].is_pinned():  # it may be freed, and written anew, before the device has read it
            counts.waited("copy from memory that is not pinned")
    indices = args[1] if name in MIXED and len(args) > 1 and isinstance(args[1], list) else ()
    if name in WAITING or any(isinstance(index, Tensor) and index.dtype is torch.bool for index in indices):
        counts.waited(f"aten::{name}")


def _contiguous(tensor: Tensor, *, memory_format: Any = torch.contiguous_format) -> Tensor:
    return tensor if tensor.is_contiguous() else tensor.clone(memory_format=torch.contiguous_format)


def _item(tensor: Tensor) -> Any:
    counts.copied("to_host")
    counts.waited("item")
    return _now(lambda: torch.ops.aten._local_scalar_dense(as_cpu(tensor)))


class _Lowered:
    """The arguments of one call as another device sees them, and its results put back on ours.

    kind: cpu, on the same memory, or meta.
    """

    def __init__(self, kind: str = "cpu") -> None:
        self.kind = kind
        self.own: dict[int, tuple[Tensor, Tensor]] = {}  # by the id of the other device's tensor: it and ours
        self.strangers: list[tuple[int, ...]] = []  # shapes of tensors that are on the host
        self.target: torch.device | None = None

    def is_own(self, value: Any) -> bool:
        return id(value) in self.own

    def down(self, value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return type(value)(self.down(one) for one in value)
        if isinstance(value, dict):
            return {key: self.down(one) for key, one in value.items()}
        if isinstance(value, torch.device) and value.type == "npu":
            self.target = value
            return torch.device(self.kind)
        if isinstance(value, Tensor) and value.device.type == "npu":
            seen = (
                as_cpu(value)
                if self.kind == "cpu"
                else torch.empty_strided(value.size(), value.stride(), dtype=value.dtype, device="meta")
            )
            self.own[id(seen)] = (seen, value)
            return seen
        if isinstance(value, Tensor) and value.dim():
            self.strangers.append(tuple(value.shape))
        return value

    def up(self, value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return type(value)(self.up(one) for one in value)
        if not isinstance(value, Tensor) or self.is_own(value):
            return self.own[id(value)][1] if isinstance(value, Tensor) else value
        where = self.target or next((theirs.device for _, theirs in self.own.values()), "npu")
        placed = torch.empty_strided(value.size(), value.stride(), dtype=value.dtype, device=where)
        if not value.is_meta:
            as_cpu(placed).copy_(value)
        return placed
