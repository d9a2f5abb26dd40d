"""Programs that run in ranks instead of a model, and the processes that tests follow."""

from __future__ import annotations

import gc
import itertools
import os
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch.distributed import TCPStore

from atb_models.errors import CheckpointError
from atb_models.ranks.group import RankGroup, RankPlacement, group_from_environment, join
from atb_models.ranks.health import Health
from atb_models.ranks.lifetime import is_dead
from atb_models.ranks.shared_memory import SLOT, SMALL

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.int64)
# One row, several, none; a whole number of ranks and not; the last small sum, the first large one, more than a slot.
SHAPES = ((1, 1), (1, 128), (3, 5, 7), (0, 4), (SMALL,), (SMALL + 1,), (5, SLOT // 4 // 3))
MESSAGE_LENGTHS = (0, 1, 100, SLOT // 4 - 1, SLOT // 4, 3 * SLOT // 4 + 17)


def rank_input(rank: int, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1000 * rank + len(shape) + sum(shape))
    return (torch.randn(shape, generator=generator) * 10).to(dtype)


def plain_sum(size: int, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """In rank order, in float32 or int64: the bits that every rank must get."""
    wide = torch.int64 if dtype is torch.int64 else torch.float32
    total = rank_input(0, shape, dtype).to(wide)
    for rank in range(1, size):
        total = total + rank_input(rank, shape, dtype).to(wide)
    return total.to(dtype)


def check_collectives(group: RankGroup, shapes: Iterable[tuple[int, ...]] = SHAPES) -> None:
    """AssertionError where a collective differs from the plain computation by a bit."""
    for i, (dtype, shape) in enumerate(itertools.product(DTYPES, shapes)):
        with torch.inference_mode(i % 2 == 0):
            mine = rank_input(group.rank, shape, dtype)
            total = plain_sum(group.size, shape, dtype)
            swapped = mine.clone().transpose(0, -1)  # not contiguous
            for x, expected in ((mine.clone(), total), (swapped, total.transpose(0, -1))):
                assert torch.equal(group.all_reduce(x), expected), ("all_reduce", shape, dtype)
                assert torch.equal(x, expected), "all_reduce is in place"
            everybody = [rank_input(rank, shape, dtype) for rank in range(group.size)]
            for dim in range(-1, len(shape)):
                gathered = group.all_gather(mine, dim)
                assert torch.equal(gathered, torch.cat(everybody, dim)), ("all_gather", shape, dtype, dim)
    assert group.minimum(7 - group.rank) == 8 - group.size


def check_special_values(group: RankGroup) -> None:
    """Infinities and NaNs pass through without a warning."""
    x = torch.tensor([float("inf"), 65504.0, float("nan")], dtype=torch.float16) * (-1) ** group.rank
    total = group.all_reduce(x).tolist()
    assert total[0] != total[0] and total[2] != total[2], total
    assert total[1] == (0.0 if group.size % 2 == 0 else 65504.0)


def check_messages(group: RankGroup) -> None:
    """Messages of all sizes between other collectives, more of them than there are slots."""
    for length in MESSAGE_LENGTHS * 2:
        sent = np.arange(length, dtype=np.int32) * 3 + length
        if group.rank == 0:
            group.send_step(sent)
        else:
            received = group.receive_step()
            assert received is not None and np.array_equal(received, sent), length
    group.barrier("messages")


def check_all(payload: str, group: RankGroup) -> None:
    assert group.rank == 0 or gc.get_freeze_count(), "a rank collects what torch's import leaves"
    check_collectives(group)
    check_special_values(group)
    check_messages(group)
    check_no_named_memory()
    serve("", group)


def check_hosts(group: RankGroup) -> None:
    """The transports of ranks that share no memory; gloo moves a device's tensors here as nccl does there."""
    from atb_models.ranks.process_group import DeviceGroup

    check_collectives(group, [(1, 128), (3, 5, 7), (SMALL + 1,)])
    check_messages(group)
    group.barrier("checking")
    device = DeviceGroup(None, group.health)
    x = torch.full((2, 3), float(group.rank))
    assert torch.equal(device.all_gather(x), torch.cat([torch.full((2, 3), float(r)) for r in range(group.size)], -1))
    assert torch.equal(device.all_reduce(x), torch.full((2, 3), float(sum(range(group.size)))))
    serve("", group)


def other_host(port: int) -> None:
    """Rank 1 of 2, each on a host of its own."""
    store = TCPStore("127.0.0.1", port, 2, is_master=False, wait_for_workers=False)
    with join(RankPlacement(1, 2, 0, 1, "cpu"), store, Health()) as group:
        check_hosts(group)


def sleeping_host(port: int) -> None:
    store = TCPStore("127.0.0.1", port, 2, is_master=False, wait_for_workers=False)
    with join(RankPlacement(1, 2, 0, 1, "cpu"), store, Health()):
        time.sleep(60)


def check_no_named_memory() -> None:
    shared = {line.split(maxsplit=5)[5] for line in Path("/proc/self/maps").read_text().splitlines() if "rw-s" in line}
    assert any(name.startswith("/memfd:atb_models") for name in shared), shared
    named = [name for name in shared if name.startswith("/dev/shm") and not name.endswith(" (deleted)")]
    assert not named, named


def serve(payload: str, group: RankGroup) -> None:
    """Take steps from rank 0, [seconds that the last rank sleeps], and sum once in each, until it closes."""
    while group.rank > 0 and (step := group.receive_step()) is not None:
        if group.rank == group.size - 1:
            time.sleep(int(step[0]))
        group.all_reduce(torch.ones(4))


def lead_step(group: RankGroup, seconds: int = 0) -> None:
    """Rank 0's part of a step of `serve`."""
    with group.doing("computing a step"):
        group.send_step(np.array([seconds], dtype=np.int32))
        assert group.all_reduce(torch.ones(4)).tolist() == [group.size] * 4


def fail(payload: str, group: RankGroup) -> None:
    if group.rank == 1:
        raise CheckpointError(payload) if payload else ValueError("a bug")
    serve("", group)


def cpu_ticks(pid: int) -> int:
    """User and system time that a process has used, in clock ticks (10 ms)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def children(pid: int | None = None) -> list[int]:
    """Child processes of all threads of a process; a thread that ends meanwhile leaves its own to others."""
    found: set[int] = set()
    for task in Path(f"/proc/{pid or os.getpid()}/task").iterdir():
        with suppress(FileNotFoundError):
            found.update(map(int, (task / "children").read_text().split()))
    return sorted(found)


def wait_until_dead(pids: Iterable[int], timeout: float = 5.0) -> float:
    """Seconds until all processes have ended. Raises TimeoutError."""
    began = time.monotonic()
    while alive := [pid for pid in pids if not is_dead(pid)]:
        if time.monotonic() - began > timeout:
            raise TimeoutError(f"still alive after {timeout} s: {alive}")
        time.sleep(0.02)
    return time.monotonic() - began


def torchrun_rank() -> None:
    """Under torchrun: all ranks meet, rank 0 says so and sleeps, the others wait for its next step."""
    group = group_from_environment("cpu")
    Path(sys.argv[1], str(group.rank)).write_text(str(os.getpid()))
    check_collectives(group, [(1, 128)])
    group.barrier("checking")
    if group.rank == 0:
        print("ready", flush=True)
        time.sleep(int(sys.argv[2]))
    serve("", group)


if __name__ == "__main__":
    torchrun_rank()


def report_threads(payload: str, group: RankGroup) -> None:
    """Write the number of torch's threads to the file `payload`."""
    Path(payload).write_text(str(torch.get_num_threads()))
    group.barrier("the report")
