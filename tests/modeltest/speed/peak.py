"""The most memory that rank 0 has held: of its device, or of the host where it computes on the CPU."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import torch

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # proc(5): VmHWM starts anew at what is resident


def peak_memory(device: torch.device) -> int:
    """Bytes: the tensors of the device at their most, as its allocator counts them; the process's VmHWM on a CPU."""
    if device.type != "cpu":
        return int(getattr(torch, device.type).max_memory_allocated(device))
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def reset_peak_memory(device: torch.device) -> None:
    """Begin anew at what is held now; a system that does not allow that counts from the start of the process."""
    if device.type != "cpu":
        getattr(torch, device.type).reset_peak_memory_stats(device)
        return
    with suppress(OSError):
        CLEAR.write_text(RESET_PEAK)
