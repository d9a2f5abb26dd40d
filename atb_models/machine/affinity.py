"""BIND_CPU and CPU_BINDING_NUM: which cores a rank of the launcher runs on."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

from atb_models import env
from atb_models.errors import ConfigError

logger = logging.getLogger(__name__)


def rank_cores(cores: Sequence[int], rank: int, ranks: int, device: str) -> list[int] | None:
    """The cores of rank `rank` of `ranks`, from those that this process may use; None if ranks are not bound.

    CPU_BINDING_NUM=n: n cores for each rank. BIND_CPU=1 (the default on npu and cuda): an even share. BIND_CPU=0: None.
    Raises ConfigError when there are too few cores.
    """
    bind, count = env.get("BIND_CPU"), env.get("CPU_BINDING_NUM")
    if bind is False or (bind is None and count is None and device == "cpu"):
        return None
    if count is not None and count * ranks > len(cores):
        raise ConfigError(
            f"CPU_BINDING_NUM={count} for {ranks} ranks needs {count * ranks} cores, {len(cores)} are usable;"
            " lower it or unset it"
        )
    if count is None and len(cores) < ranks:
        if bind:
            raise ConfigError(f"BIND_CPU=1 needs a core for each of {ranks} ranks, {len(cores)} are usable; unset it")
        return None
    count = count or len(cores) // ranks
    return list(cores[rank * count : (rank + 1) * count])


def bind_cores(device: str) -> None:
    """Bind this rank of the launcher or of torchrun to its cores, before its threads start.

    A plain process is not bound, because the ranks that `LLM` starts would inherit the cores of rank 0.
    """
    if env.get("WORLD_SIZE") is None:
        names = [name for name in ("BIND_CPU", "CPU_BINDING_NUM") if env.get(name)]
        if names:
            logger.warning("%s has no effect without the launcher or torchrun", " and ".join(names))
        return
    local_rank, ranks = env.get("LOCAL_RANK") or 0, env.get("LOCAL_WORLD_SIZE") or env.get("WORLD_SIZE") or 1
    cores = rank_cores(sorted(os.sched_getaffinity(0)), local_rank, ranks, device)
    if cores is not None:
        os.sched_setaffinity(0, cores)
        logger.info("rank %d is bound to cores %s", local_rank, ",".join(map(str, cores)))


def rank_threads(ranks: int) -> int:
    """OpenMP threads of one of `ranks` ranks: OMP_NUM_THREADS, CPU_BINDING_NUM, or an even share of the cores."""
    from atb_models.machine.cores import available_cores

    bound = env.get("CPU_BINDING_NUM") if env.get("BIND_CPU") is not False else None
    return env.get("OMP_NUM_THREADS") or bound or max(1, available_cores() // ranks)
