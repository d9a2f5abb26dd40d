"""The memory that a rank may still take."""

from __future__ import annotations

import resource
from pathlib import Path

import torch

from atb_models import env
from atb_models.engine.cgroup import OWN, ROOT, cgroup_folders
from atb_models.errors import CapacityError

GIB = 1 << 30
UNLIMITED = 1 << 62
# What torch's libraries and the allocator take of a CPU rank's memory once it runs: kernels made at first use, buffers
# of threads, freed blocks that are kept. Measured with benchmarks/memory.py.
RUNTIME_BYTES = 64 << 20


def free_memory(device: torch.device, ranks_here: int) -> int:
    """Bytes for this rank's weights, activations and KV cache, never negative.

    On a CPU the ranks of a host share what is left of its memory within the cgroup's limit, and each stays within the
    limits of its own process. On a device, NPU_MEMORY_FRACTION and RESERVED_MEMORY_GB are taken off.
    """
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        reserved = int(env.get("RESERVED_MEMORY_GB")) * GIB
        return max(0, int(free - (1 - float(env.get("NPU_MEMORY_FRACTION"))) * total) - reserved)
    shared = min(_host_available(), _cgroup_available()) // ranks_here
    return max(0, min(shared, _process_available()) - RUNTIME_BYTES)


def _process_available(statm: Path = Path("/proc/self/statm")) -> int:
    """What `ulimit -v` and `ulimit -d` leave of this process's address space."""
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
    raise CapacityError(f"{meminfo} has no MemAvailable line, so nobody knows what memory is free")


def _cgroup_available(root: Path = ROOT, own: Path = OWN) -> int:
    """What the tightest memory limit of this process's cgroups leaves, or a number beyond any memory."""
    return min(map(_left, cgroup_folders("memory", root, own)), default=UNLIMITED)


def _left(folder: Path) -> int:
    """Limit less usage, where the cache of files, which gives way, does not count (v2's files, else v1's)."""
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
