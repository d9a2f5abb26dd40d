"""The launcher of the example scripts: run_pa on one rank a device, started by torchrun.

    python -m atb_models.launch [weights] [run_pa's flags]

What can be wrong with the arguments, the variables and config.json is said here, once, before any rank starts. This
process becomes torchrun; the scripts `exec` it, so that their pid is torchrun's.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from atb_models import env, log
from atb_models.command.exit_status import run_guarded
from atb_models.command.interrupt import interrupt_ends_at_once
from atb_models.command.values import AUTO
from atb_models.launcher.args import parse_args
from atb_models.launcher.devices import choose_devices, existing_devices, export_devices
from atb_models.launcher.look import look
from atb_models.launcher.port import choose_address, choose_port
from atb_models.launcher.prepare import prepare
from atb_models.launcher.torchrun import PortTaken, run_ranks
from atb_models.layers.heads import check_ranks
from atb_models.machine.affinity import rank_cores, rank_threads
from atb_models.machine.imports import import_torch_for_good


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status of the run with these arguments (None: the process's)."""
    os.environ["ATB_LAUNCHER_PID"] = str(os.getpid())
    env.set_default("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):  # torchrun sets them for its ranks
        os.environ.pop(name, None)
    return run_guarded(lambda: launch(sys.argv[1:] if argv is None else argv))


def launch(argv: Sequence[str]) -> int:
    """Decide devices and port, then run the ranks. Raises AtbError for what is seen before they start."""
    log.setup()
    args = parse_args(argv)
    os.environ.pop("ATB_LAUNCHER_ASKED", None)  # of another launcher
    if args.plan or args.print_graph:
        _, devices = _devices(args.device, args.tp, deterministic=args.deterministic)
        look(args, len(devices))
        return 0
    with _without_notices():
        prepared = prepare(args)
    config, model = prepared.config, prepared.model
    wanted_port, address = env.get("MASTER_PORT"), choose_address()
    if wanted_port is not None:
        choose_port(wanted_port)  # only looks; one of ours is chosen when the ranks start
    kind, devices = _devices(config.device, args.tp, deterministic=config.deterministic)
    if env.get("LOGLEVEL") is None:
        os.environ.pop("LOGLEVEL", None)  # torchrun takes an empty one for a level
    with interrupt_ends_at_once(), import_torch_for_good():
        importlib.import_module("torch.distributed.run")  # for run_ranks
    check_ranks(model.num_attention_heads, len(devices))
    rank_cores(sorted(os.sched_getaffinity(0)), 0, len(devices), kind)
    os.environ.update(export_devices(kind, devices, os.environ))
    if config.model_path is not None:
        os.environ["ATB_LAUNCHER_MODEL_PATH"] = config.model_path
        os.environ["ATB_LAUNCHER_ASKED"] = args.model_path or ""
    os.environ["OMP_NUM_THREADS"] = str(rank_threads(len(devices)))
    return _run(len(devices), address, wanted_port, argv)


def _devices(wanted: str | None, tp: int, *, deterministic: bool) -> tuple[str, Sequence[int]]:
    """The kind of device and the numbers of those that the ranks take, one each, for --device and --tp."""
    listed = env.get("ASCEND_RT_VISIBLE_DEVICES")
    with interrupt_ends_at_once(), import_torch_for_good():
        kind, existing = existing_devices(wanted, deterministic=deterministic)
    return kind, choose_devices(listed, existing, None if tp == AUTO else tp)


@contextmanager
def _without_notices() -> Iterator[None]:
    """The checks of the block log nothing here: rank 0 repeats them, and logs."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def _run(count: int, address: str, wanted_port: int | None, argv: Sequence[str]) -> int:
    """Start the ranks; another launcher may take the port between our look and torchrun's."""
    taken: set[int] = set()
    while True:
        port = choose_port(wanted_port, taken)
        try:
            return run_ranks(count, address, port, argv)
        except PortTaken:
            taken.add(port)


if __name__ == "__main__":
    sys.exit(main())
