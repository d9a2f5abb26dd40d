"""Ranks that stay for many runs of a model: a process needs more time to import torch than most such runs take.

What they run meets them as torchrun's ranks do, through the environment. Tests of how ranks start, end and die start
ranks of their own. This module is also the program of the ranks: each JSON line on stdin is one run.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any

from atb_models.machine.imports import import_torch_for_good
from tests.launcher.processes import any_port

ROOT = Path(__file__).resolve().parents[1]
LIMIT_S = 200.0


class KeptRanks:
    """Processes that are the ranks of one run after another; started when they are first needed, ended by `close`."""

    def __init__(self) -> None:
        self._processes: list[subprocess.Popen[str]] = []

    def run(self, function: str, size: int, *words: Any) -> Any:
        """Call `function`, "module:name", with `words` on ranks 0 to size - 1 of one host -> what rank 0 returns.

        Words and result are what JSON holds. Raises AssertionError with the traceback when the call raises. A rank
        that its LLM ends (`SystemExit`) has done its part.
        """
        self._start(size)
        ranks, port = self._processes[:size], any_port()
        for rank, process in enumerate(ranks):
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
            run = {"environ": place | {"MASTER_PORT": port}, "function": function, "words": words}
            assert process.stdin is not None
            process.stdin.write(json.dumps(run) + "\n")
            process.stdin.flush()
        reply = self._reply(ranks[0])
        errors = [reply["error"]] if "error" in reply else [self._reply(rank).get("error") for rank in ranks[1:]]
        if any(errors):
            self.close()  # they may be out of step with each other
            raise AssertionError("\n".join(filter(None, errors)))
        return reply["result"]

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.communicate()
        self._processes.clear()

    def _start(self, size: int) -> None:
        path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])  # as pytest has it: the functions lie in test modules
        environ = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}
        environ["ATB_LAUNCHER_PID"] = str(os.getpid())  # they end when this process does
        command = [sys.executable, "-m", "tests.kept_ranks"]
        while len(self._processes) < size:
            process = subprocess.Popen(
                command, cwd=ROOT, env=os.environ | environ, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            self._processes.append(process)

    @staticmethod
    def _reply(process: subprocess.Popen[str]) -> dict[str, Any]:
        assert process.stdout is not None
        if not select.select([process.stdout], [], [], LIMIT_S)[0]:
            return {"error": f"no answer within {LIMIT_S:g} s"}
        line = process.stdout.readline()
        reply: dict[str, Any] = json.loads(line) if line else {"error": f"a rank ended with status {process.wait()}"}
        return reply


def main() -> None:
    for line in sys.stdin:
        run = json.loads(line)
        os.environ.update({name: str(value) for name, value in run["environ"].items()})
        module, _, name = run["function"].partition(":")
        try:
            with import_torch_for_good():
                function = getattr(import_module(module), name)
            with contextlib.redirect_stdout(sys.stderr):
                reply = {"result": function(*run["words"])}
        except SystemExit:  # where the LLM of another rank than 0 ends
            reply = {"result": None}
        except BaseException:
            reply = {"error": traceback.format_exc()}
        if "error" in reply and run["environ"]["RANK"]:
            sys.exit(reply["error"])  # rank 0, which waits for this one, is to see that it is gone
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main()
