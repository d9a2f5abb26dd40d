"""Ranks on devices: one that dies ends the run, whatever the others wait for."""

from __future__ import annotations

from tests.npu.conftest import Run

PROGRAM = """
import os, signal, subprocess, time
from atb_models import LLM, SamplingParams
from atb_models.errors import RankError

short = SamplingParams(max_tokens=3)
with LLM(device="npu", tp=2) as llm:
    llm.generate([[1, 2]], short)
    command = ["ps", "--ppid", str(os.getpid()), "-o", "pid=,args="]
    children = subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
    (rank,) = (int(line.split()[0]) for line in children if "engine.rank" in line)
    os.kill(rank, signal.SIGKILL)
    start = time.monotonic()
    try:
        llm.generate([[1, 2]], short)
    except RankError as error:
        print(f"{error} | {time.monotonic() - start < 10}")
"""


def test_a_rank_that_dies_ends_the_run(soft_npu: Run) -> None:
    done = soft_npu("-c", PROGRAM, devices=2)
    last = done.stdout.splitlines()[-1]
    assert "rank 1" in last and "was killed by signal 9" in last and last.endswith("| True"), done.stderr
