"""Several hosts: this program on each of them, its ranks started by torchrun."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from atb_models import env
from atb_models.errors import ConfigError
from atb_models.files import read_text
from atb_models.json_file import json_object
from modeltest.command.cases import Nodes
from modeltest.exports import export_defaults
from modeltest.places import HOME, in_checkout

DEFAULT_PORT = 20030  # of the project's scripts
POLL_SECONDS = 0.1


def check_nodes(nodes: Nodes, where: str) -> None:
    """Raises ConfigError, with both numbers, for words that contradict one another or the rank table.

    where: how an error calls the rank table's word.
    """
    if nodes.world_size % nodes.count:
        raise ConfigError(f"world_size {nodes.world_size} cannot be split evenly over node_num {nodes.count} hosts")
    if nodes.first_rank >= nodes.world_size or nodes.first_rank % nodes.per_node:
        starts = ", ".join(str(host * nodes.per_node) for host in range(nodes.count))
        raise ConfigError(f"rank_id_start {nodes.first_rank} is the first rank of no host; they start at {starts}")
    table = _rank_table(nodes, where)
    servers = table["server_list"]
    counts = {"hosts": len(servers), "devices": sum(len(server["device"]) for server in servers)}
    for (what, found), (name, said) in zip(
        counts.items(), {"node_num": nodes.count, "world_size": nodes.world_size}.items(), strict=True
    ):
        if found != said:
            raise ConfigError(f"{name} {said} contradicts {nodes.rank_table}, which lists {found} {what}")


def _rank_table(nodes: Nodes, where: str) -> dict[str, Any]:
    """HCCL's file: `server_list`, each with a list `device`."""
    problem = f"{where} is no rank table: a JSON file whose server_list has a list `device` for each host"
    try:
        table = json_object(read_text(nodes.rank_table, "it"), "it")
        if all(isinstance(server["device"], list) for server in table["server_list"]):
            return dict(table)
    except ConfigError as error:
        raise ConfigError(f"{problem}; {error}") from None
    except (TypeError, KeyError):
        pass
    raise ConfigError(problem)


def is_rank() -> bool:
    """Whether this process is one of torchrun's ranks already."""
    return env.get("TORCHELASTIC_RUN_ID") is not None


def run_ranks(nodes: Nodes, words: Sequence[str]) -> int:
    """Run this program as the ranks of this host and wait for them; the worst of their statuses."""
    if env.get("LOGLEVEL") is None:
        os.environ.pop("LOGLEVEL", None)  # torchrun takes an empty one for a level
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    os.environ["RANK_TABLE_FILE"] = str(nodes.rank_table.absolute())  # the word is the user's later choice
    export_defaults(rank_variables(nodes))
    _quiet_torchrun()
    arguments = torchrun.parse_args(torchrun_flags(nodes))
    arguments.training_script_args = [word.replace("$", "$$") for word in words]  # $ starts a macro of torchrun's
    try:
        torchrun.run(arguments)
    except ChildFailedError as error:
        return worst({rank: failure.exitcode for rank, failure in error.failures.items()})
    except SignalException as error:
        print(f"stopped by {signal.Signals(error.sigval).name}; the ranks of this host are ended", file=sys.stderr)
        return 128 + int(error.sigval)
    return 0


def rank_variables(nodes: Nodes) -> dict[str, str]:
    """What the ranks of this host are to find in their environment, unless the user set it."""
    return {
        "OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // nodes.per_node)),
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "3",
    }


def torchrun_flags(nodes: Nodes) -> list[str]:
    """The arguments of torchrun up to this program's own; MASTER_PORT must be the same on every host."""
    started = [str(HOME / "start.py")] if in_checkout() else ["--module", "modeltest"]
    return [
        f"--nnodes={nodes.count}",
        f"--node-rank={nodes.first_rank // nodes.per_node}",
        f"--nproc-per-node={nodes.per_node}",
        "--rdzv-backend=static",
        f"--master-addr={nodes.master_addr}",
        f"--master-port={env.get('MASTER_PORT') or DEFAULT_PORT}",
        "--max-restarts=0",
        f"--monitor-interval={POLL_SECONDS}",
        f"--log-dir={os.devnull}",
        *started,
    ]


def worst(statuses: Mapping[int, int]) -> int:
    """The worst exit status; ranks killed by a signal, which could not say anything, are named.

    torchrun ends the ranks that are left with SIGTERM: these count only where there are no others.
    """
    causes = {rank: status for rank, status in statuses.items() if status != -signal.SIGTERM} or statuses
    for rank, status in causes.items():
        if status < 0:
            print(f"rank {rank} was killed by {signal.Signals(-status).name}", file=sys.stderr)
    return max(status if status >= 0 else 128 - status for status in causes.values())


def _quiet_torchrun() -> None:
    """Its log repeats the end of every rank, which says the cause itself. LOGLEVEL brings it back."""
    if env.get("LOGLEVEL") is None:
        for name in list(logging.root.manager.loggerDict):
            if name.startswith("torch.distributed.elastic"):
                logging.getLogger(name).setLevel(logging.CRITICAL + 1)
