"""How many KV blocks a rank can hold."""

from __future__ import annotations

from pathlib import Path

import torch

from atb_models import env
from atb_models.engine.cgroup import OWN, ROOT, cgroup_folders
from atb_models.engine.config import EngineConfig
from atb_models.errors import CapacityError
from atb_models.models.config import ModelConfig

GIB = 1 << 30
UNLIMITED = 1 << 62
# Of the memory left after the weights, the share kept for activations, the allocator's slack and other processes.
KEPT_SHARE = 0.2


def block_bytes(config: ModelConfig, kv_heads: int, block_size: int, dtype: torch.dtype) -> int:
    """Bytes of one KV block on a rank with `kv_heads` heads: K and V of every layer."""
    return 2 * config.num_hidden_layers * block_size * kv_heads * config.head_dim * dtype.itemsize


def choose_kv_blocks(config: EngineConfig, max_seq_len: int, bytes_per_block: int, free_bytes: int) -> int:
    """`kv_blocks`, or else blocks for `max_batch_size` sequences of `max_seq_len` tokens, or as many as fit.

    Raises CapacityError when not one block fits, or not the number asked for; a request that is too long for the pool
    is refused on its own.
    """
    wanted = config.kv_blocks or config.max_batch_size * -(-max_seq_len // config.block_size)
    # A number that was asked for may take what is kept aside, but not what is not there.
    fitting = int(free_bytes * (1 if config.kv_blocks else 1 - KEPT_SHARE)) // bytes_per_block
    needed = config.kv_blocks or 1
    if fitting < needed:
        raise CapacityError(
            f"no memory for the KV cache: {free_bytes / GIB:.2f} GiB left after the weights, {needed} blocks of"
            f" {config.block_size} tokens take {needed * bytes_per_block / GIB:.2f} GiB, {fitting} would fit;"
            " use more ranks (--tp), fewer layers, a smaller --kv_blocks or --block_size, or free memory"
        )
    return min(wanted, fitting)


def free_memory(device: torch.device, ranks_here: int) -> int:
    """Bytes this rank may still take. On a CPU the ranks of a host share what is left, within the cgroup's limit."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        reserved = int(env.get("RESERVED_MEMORY_GB")) * GIB
        return max(0, int(free - (1 - float(env.get("NPU_MEMORY_FRACTION"))) * total) - reserved)
    return min(_host_available(), _cgroup_available()) // ranks_here


def _host_available(meminfo: Path = Path("/proc/meminfo")) -> int:
    for line in meminfo.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise CapacityError(f"{meminfo} has no MemAvailable line; give the pool's size with --kv_blocks")


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
