"""Runs the ranks under torchrun, in this process, and says in one line why they ended."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, NoReturn

from atb_models import env
from atb_models.command.exit_status import print_error

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

POLL_SECONDS = 0.1
# Signals that kill a rank from outside; SIGTERM is not among them, for torchrun sends it to the ranks it ends.
DEATHS = frozenset(signal.Signals) - {signal.SIGTERM}
ROOT = Path(__file__).parents[2]
_INTERRUPTED = "interrupted"


class PortTaken(Exception):
    """Somebody was faster to listen on the rendezvous port."""


@dataclass(frozen=True)
class Told:
    """What a rank said before it ended; `is_consequence`: it only saw that another one is gone."""

    rank: int
    message: str
    status: int
    is_consequence: bool


def run_ranks(count: int, address: str, port: int, argv: Sequence[str]) -> int:
    """Start `count` ranks of run_pa with these arguments and wait for them; the exit status of all.

    When one fails torchrun ends the others; the cause is printed as one error. Raises PortTaken.
    """
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    env.set_default("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "3")
    _quiet_torchrun()
    # A file without a name: gone with this process, however that ends.
    with open(os.memfd_create("atb_launcher_errors"), "w+", encoding="utf-8") as told:
        os.environ["ATB_LAUNCHER_ERRORS"] = f"/proc/{os.getpid()}/fd/{told.fileno()}"
        arguments = torchrun.parse_args(_torchrun_flags(count, address, port))
        # torchrun replaces $ macros in its script's arguments
        arguments.training_script_args = [word.replace("$", "$$") for word in argv]
        arguments.signals_to_handle = "SIGTERM,SIGHUP,SIGQUIT"  # a torch that does not know it handles SIGINT too
        signal.signal(signal.SIGINT, _interrupt)
        try:
            torchrun.run(arguments)
        except ChildFailedError as error:
            return _report(error.failures, _read_told(told))
        except SignalException as error:
            number = signal.SIGINT if str(error) == _INTERRUPTED else signal.Signals(error.sigval)
            _end_line()
            print_error(f"stopped by {number.name}; all ranks are ended")
            return 128 + number
        except RuntimeError as error:
            if "EADDRINUSE" in str(error) or "already in use" in str(error):
                raise PortTaken from None
            raise
    return 0


def _interrupt(*_: object) -> NoReturn:
    """Ctrl-C ends the ranks with SIGTERM: a Python that is just starting answers SIGINT with a traceback."""
    from torch.distributed.elastic.multiprocessing import SignalException

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise SignalException(_INTERRUPTED, sigval=signal.SIGTERM)


def _end_line() -> None:
    """A rank 0 that was killed may have left a progress bar, after which the line goes on."""
    with suppress(OSError):
        print(file=sys.stderr, flush=True)


def _torchrun_flags(count: int, address: str, port: int) -> list[str]:
    script = ROOT / "run_pa.py"  # absent where the package was installed from a wheel
    target = [str(script)] if script.is_file() else ["--module", "atb_models.launcher"]
    return [
        f"--nproc-per-node={count}",
        "--nnodes=1",
        "--node-rank=0",
        "--rdzv-backend=static",
        f"--master-addr={address}",
        f"--master-port={port}",
        "--max-restarts=0",
        f"--monitor-interval={POLL_SECONDS}",
        f"--log-dir={os.devnull}",
        *target,
    ]


def _quiet_torchrun() -> None:
    """Its log repeats the end of every rank; ours says the cause. LOGLEVEL brings it back."""
    if not env.is_set("LOGLEVEL"):
        for name in list(logging.root.manager.loggerDict):
            if name.startswith("torch.distributed.elastic"):
                logging.getLogger(name).setLevel(logging.CRITICAL + 1)


def _read_told(stream: IO[str]) -> list[Told]:
    stream.seek(0)
    return [Told(**json.loads(line)) for line in stream if line.strip()]


def _report(failures: Mapping[int, ProcessFailure], told: Sequence[Told]) -> int:
    """Print the cause of a failed run; `failures` in the order in which they were seen. Returns the exit status.

    A signal other than torchrun's own SIGTERM comes first: what the other ranks say then is its consequence.
    """
    if 0 not in failures or failures[0].exitcode < 0:
        _end_line()
    killed = [rank for rank, failure in failures.items() if -failure.exitcode in DEATHS]
    causes = [one for one in told if not one.is_consequence] or told
    if killed:
        print_error(_ending(killed[0], failures[killed[0]]))
        return 1
    if causes:
        for message in dict.fromkeys(one.message for one in causes):
            ranks = [one.rank for one in causes if one.message == message]
            print_error(message if 0 in ranks else f"rank {', '.join(map(str, sorted(ranks)))}: {message}")
        return causes[0].status
    rank, failure = next(iter(failures.items()))
    print_error(_ending(rank, failure))
    return failure.exitcode if failure.exitcode > 0 else 1


def _ending(rank: int, failure: ProcessFailure) -> str:
    name = f"rank {rank} (pid {failure.pid})"
    if failure.exitcode >= 0:
        return f"{name} ended with status {failure.exitcode}"
    hint = "; the kernel does that when memory runs out" if failure.exitcode == -signal.SIGKILL else ""
    return f"{name} was killed by signal {-failure.exitcode} ({failure.signal_name()}){hint}"
