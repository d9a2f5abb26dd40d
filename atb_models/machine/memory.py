"""The memory that a rank can still use."""

from __future__ import annotations

import resource
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from atb_models import env
from atb_models.errors import CapacityError
from atb_models.machine.cgroup import OWN, ROOT, cgroup_folders
from atb_models.machine.device import device_module
from atb_models.wording import GIB

UNLIMITED = 1 << 62
# What torch's libraries use of a CPU rank's memory while it runs: kernels compiled at first use, buffers of threads.
# Measured with benchmarks/memory.py.
RUNTIME_BYTES = 64 << 20
# Kept free in a limited address space: stacks and arenas of threads count there although most of them are not used.
ADDRESS_SPACE_BYTES = 512 << 20


@dataclass(frozen=True)
class Free:
    """Bytes for weights, activations and KV cache.

    own: for this rank alone, on its device or within the limits of its process. shared: for all ranks of the host
    together; None on devices, which are not shared. most_ranks: the number of devices; None without a limit.
    """

    own: int
    shared: int | None = None
    most_ranks: int | None = None

    def of_rank(self, ranks_here: int) -> int:
        """Bytes that each of `ranks` ranks may use; negative if not even the reserve is free."""
        return self.own if self.shared is None else min(self.own, _share(self.shared, ranks_here))

    def where(self, ranks_here: int) -> str:
        """Which memory limits a rank, for messages."""
        if self.shared is None:
            return "of its device (less RESERVED_MEMORY_GB and what NPU_MEMORY_FRACTION leaves)"
        bound_by_host = _share(self.shared, ranks_here) <= self.own
        return "of the memory of this host or its control group" if bound_by_host else "of its address space (ulimit)"


def _share(shared: int, ranks_here: int) -> int:
    return shared // ranks_here - RUNTIME_BYTES


def free_memory(device: torch.device) -> Free:
    """The memory that is free now.

    On a CPU the ranks of a host share its free memory within the cgroup's limit, each within the limits of its own
    process. On a device, NPU_MEMORY_FRACTION and RESERVED_MEMORY_GB are subtracted.
    """
    if device.type != "cpu":
        devices = device_module(device.type)
        devices.empty_cache()  # memory that an earlier model of this process left in the cache
        free, total = devices.mem_get_info(device)
        reserved = int(env.get("RESERVED_MEMORY_GB")) * GIB
        own = int(free - (1 - float(env.get("NPU_MEMORY_FRACTION"))) * total) - reserved
        return Free(own, most_ranks=devices.device_count())
    return Free(_process_available() - ADDRESS_SPACE_BYTES, shared=min(_host_available(), _cgroup_available()))


def _process_available(statm: Path = Path("/proc/self/statm")) -> int:
    """Bytes of address space that `ulimit -v` and `ulimit -d` still leave this process."""
    pages = statm.read_text().split()
    page, left = resource.getpagesize(), [UNLIMITED]
    for limit, used in ((resource.RLIMIT_AS, pages[0]), (resource.RLIMIT_DATA, pages[5])):
        soft, _ = resource.getrlimit(limit)
        if soft != resource.RLIM_INFINITY:
            left.append(max(0, soft - int(used) * page))
    return min(left)


def _host_available(meminfo: Path = Path("/proc/meminfo")) -> int:
    for line in meminfo.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise CapacityError(f"{meminfo} has no MemAvailable line, so the free memory is not known")


def _cgroup_available(root: Path = ROOT, own: Path = OWN) -> int:
    """Bytes that the lowest memory limit of this process's cgroups leaves, or a number beyond any memory."""
    return min(map(_left, cgroup_folders("memory", root, own)), default=UNLIMITED)


def _left(folder: Path) -> int:
    """Limit minus usage. The file cache does not count, as the kernel frees it when needed. v2's files, else v1's."""
    for limit, usage, cache in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            text = (folder / limit).read_text().strip()
            used = int((folder / usage).read_text())
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        except OSError:
            continue
        return UNLIMITED if text == "max" else max(0, int(text) - used + int(stat.get(cache, 0)))
    return UNLIMITED


def last_level_cache(caches: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> int:
    """Bytes of the largest cache of the first processor; 0 where the kernel does not tell."""
    sizes = [0]
    for file in caches.glob("index*/size"):
        with suppress(OSError, ValueError):
            text = file.read_text("ascii").strip()
            sizes.append(int(text.rstrip("KM")) << {"K": 10, "M": 20}.get(text[-1:], 0))
    return max(sizes)
