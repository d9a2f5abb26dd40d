"""The collectives of the `hccl` process group on pretend devices: gloo moves the same bytes between the processes.

The process group is torch_npu's own; its kernels of c10d's operators, which would reach HCCL, are replaced.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import FakeWork

from tests.npu.soft import counts, graphs
from tests.npu.soft.demands import need
from tests.npu.soft.memory import as_cpu


def install() -> torch.library.Library:
    library = torch.library.Library("c10d", "IMPL")
    for name, run in (("allreduce_", _all_reduce), ("allgather_", _all_gather)):
        library.impl(name, run, "PrivateUse1")
    return library


@cache
def _gloo(world: Any) -> Any:
    """A group of all ranks, made at the first collective of their world, which all of them call together."""
    return dist.new_group(backend="gloo")


def _do(name: str, move: Callable[[], Any]) -> Any:
    """Now, or at each replay of the graph that is captured -> what the caller may wait for."""
    counts.OPERATORS[name] += 1
    if graphs.DEVICE.records:
        graphs.DEVICE.keep(graphs.Call(name, move))
        return FakeWork().boxed()
    graphs.DEVICE.idle()
    return move()


def _gather(rows: list[Tensor], mine: Tensor) -> Any:
    work = dist.all_gather(rows, mine, group=_gloo(dist.group.WORLD), async_op=True)
    work.wait()
    return work.boxed()


def _bytes(tensor: Tensor) -> Tensor:
    need(dist.get_backend() == "hccl", f"tensors of a device in a group of {dist.get_backend()}")
    need(tensor.is_contiguous(), f"HCCL takes contiguous tensors, not strides {tensor.stride()}")
    return as_cpu(tensor).reshape(-1).view(torch.uint8)


def _all_reduce(tensors: list[Tensor], group: Any, op: Any, *_: Any, **__: Any) -> Any:
    """Sums in float32, in rank order."""
    mine, dtype = _bytes(tensors[0]), tensors[0].dtype

    def move() -> Any:
        rows = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
        work = _gather(rows, mine)
        wide = torch.float32 if dtype.is_floating_point else dtype
        mine.copy_(torch.stack([row.view(dtype).to(wide) for row in rows]).sum(0).to(dtype).view(torch.uint8))
        return work

    return tensors, _do("c10d::allreduce_", move)


def _all_gather(outputs: list[list[Tensor]], inputs: list[Tensor], *_: Any, **__: Any) -> Any:
    rows, mine = [_bytes(out) for out in outputs[0]], _bytes(inputs[0])
    return outputs, _do("c10d::allgather_", lambda: _gather(rows, mine))
