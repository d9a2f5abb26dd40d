"""However a run dies, and whenever: nothing of it is left, and whoever is left to say it says why in one line."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path
from signal import SIGHUP, SIGINT, SIGKILL, SIGTERM, Signals

import pytest
import tiny

from atb_models.launcher.port import is_free
from tests.launcher.processes import Program, any_port, start_script, unlogged

LIMIT_S = 5.0
# Long enough that nothing ends by itself: many tensors to load, one step with much to compute, many steps.
SLOW_TO_LOAD = {"n_routed_experts": 4096, "moe_intermediate_size": 8}
PROMPT = [3 + i * 7 % 250 for i in range(6000)]
BATCH, STEPS, STEP_TOKENS = 12, 8000, 100_000

FLAGS = {
    "starting": ["--input_ids", "1"],
    "loading": ["--input_ids", "1", "--config_overrides", json.dumps(SLOW_TO_LOAD)],
    "prefill": ["--input_ids", ",".join(map(str, PROMPT)), "--max_batch_size", str(BATCH), "--max_output_length", "1",
        "--max_input_length", str(len(PROMPT)), "--max_prefill_tokens", str(STEP_TOKENS), "--prefix_cache", "off"],
    "decode": ["--input_ids", "1,2", "--ignore_eos", "--max_output_length", str(STEPS)],
}  # fmt: skip
PARENT = f"""
import time
from atb_models import LLM, SamplingParams
llm = LLM(load_format="dummy", max_prefill_tokens={STEP_TOKENS}, prefix_cache=False, %s)
def answer(prompts, tokens):
    llm.generate(prompts, SamplingParams(max_tokens=tokens, ignore_eos=True))
print("begin inference", flush=True)
"""
CALLS = {
    "starting": "",
    "loading": "",
    "prefill": f"answer([{PROMPT}] * {BATCH}, 1)",
    "decode": f"answer([[1, 2]], {STEPS})",
    "idle": "time.sleep(1); answer([[1, 2]], 1)",  # who is left only notices in the next call
}
ACTIVITY = {
    "starting": "starting the ranks",
    "loading": "loading weights",
    "prefill": "running a step",
    "decode": "(running a step|idle)",
    "idle": "idle",
}

Death = tuple[str, Signals]  # whose: "rank <n>", "parent" or "group" (the parent's, as a terminal does); of what
DEATHS: list[Death] = [
    ("rank 0", SIGKILL), ("rank 1", SIGKILL), ("parent", SIGKILL), ("parent", SIGTERM), ("parent", SIGINT),
    ("group", SIGINT), ("parent", SIGHUP),
]  # fmt: skip
WIDE: list[Death] = [("rank 3", SIGKILL), ("group", SIGINT), ("parent", SIGKILL)]

pytestmark = pytest.mark.usefixtures("clean_environ")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model that needs no weights, for they are dummies."""
    folder = tmp_path_factory.mktemp("weights")
    (folder / "config.json").write_text(json.dumps({**tiny.DEEPSEEK, "max_position_embeddings": 8192}))
    return str(folder)


@pytest.fixture(autouse=True)
def no_files_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    temporary = tmp_path / "temporary files"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    before = set(os.listdir("/dev/shm"))
    yield
    assert set(os.listdir("/dev/shm")) <= before
    assert os.listdir(temporary) == []


def cases(common: list[tuple[str, Death]], ranks: int, moments: Iterable[str], deaths: list[Death]) -> list[object]:
    """(moment, death, ranks): the common ones with 2 ranks for every run of the tests, the crosses for the full one.

    The common ones have both ways of starting, each moment of work, and a death of a rank, of the parent and of the
    group; test_torchrun.py has every signal, with ranks that need no torch, and tests/ranks a death in idleness.
    """
    every = dict.fromkeys((*product(moments, deaths, [ranks]), *product(("loading", "decode"), WIDE, [4, 8])))
    few = [(*one, 2) for one in common]
    return [_case(*one) for one in few] + [_case(*one, full=True) for one in every if one not in few]


def _case(moment: str, death: Death, ranks: int, *, full: bool = False) -> object:
    name = f"{death[0]} {death[1].name} {moment} {ranks}".replace(" ", "-")
    return pytest.param(moment, death, ranks, id=name, marks=[pytest.mark.full] if full else [])


SCRIPT_COMMON: list[tuple[str, Death]] = [
    ("loading", ("parent", SIGKILL)),
    ("prefill", ("group", SIGINT)),
    ("decode", ("rank 1", SIGKILL)),
]


@pytest.mark.parametrize(("moment", "death", "ranks"), cases(SCRIPT_COMMON, 2, FLAGS, DEATHS))
def test_script(root: Path, tmp_path: Path, weights: str, moment: str, death: Death, ranks: int) -> None:
    port, flags = any_port(), ["--load_format", "dummy", *FLAGS[moment]]
    with start_script(root, tmp_path, weights, *flags, ranks=ranks, MASTER_PORT=str(port)) as program:
        wait_for(moment, program, set(range(ranks)))
        pids = program.ranks()
        # The shell has become torchrun: there is no shell that could be killed and leave torchrun behind.
        assert {program.environs()[pid]["ATB_LAUNCHER_PID"] for pid in pids.values()} == {str(program.pid)}
        status, errors = die(program, death)
        assert "end inference" not in program.err
    assert is_free(port)
    assert (status, errors) == expected_of_script(death, pids)


def expected_of_script(death: Death, pids: dict[int, int]) -> tuple[int, list[str]]:
    """Status and what torchrun's process says."""
    victim, number = death
    if victim.startswith("rank"):
        killed = f"{victim} (pid {pids[int(victim[5:])]}) was killed by signal 9 (SIGKILL)"
        return 1, [f"atb-models: error: {killed}; the kernel does that when memory runs out"]
    if number == SIGKILL:
        return -SIGKILL, []
    return 128 + number, [f"atb-models: error: stopped by {number.name}; all ranks are ended"]


PARENT_COMMON: list[tuple[str, Death]] = [
    ("loading", ("rank 1", SIGKILL)),
    ("decode", ("group", SIGINT)),
]


@pytest.mark.parametrize(("moment", "death", "ranks"), cases(PARENT_COMMON, 4, CALLS, DEATHS[1:]))
def test_plain_python(root: Path, tmp_path: Path, weights: str, moment: str, death: Death, ranks: int) -> None:
    overrides = SLOW_TO_LOAD if moment == "loading" else None
    arguments = f"model_path={weights!r}, tp={ranks}, config_overrides={overrides}"
    command = [sys.executable, "-c", PARENT % arguments + CALLS[moment]]
    with Program(command, tmp_path, PYTHONPATH=str(root), OMP_NUM_THREADS="1") as program:
        wait_for(moment, program, set(range(1, ranks)))
        pids = program.ranks()
        status, errors = die(program, death)
    check_parent(moment, death, pids, status, errors)


def check_parent(moment: str, death: Death, pids: dict[int, int], status: int, errors: list[str]) -> None:
    """An error or Ctrl-C that the program does not catch ends it with the one traceback that Python prints."""
    victim, number = death
    if victim.startswith("rank"):
        killed = rf"{victim} \(pid {pids[int(victim[5:])]}\) was killed by signal 9 \(SIGKILL\)"
        assert status == 1
        assert re.fullmatch(rf"atb_models\.errors\.RankError: {killed} while {ACTIVITY[moment]}", errors[-1]), errors
    else:
        assert status == -number
        assert errors[-1:] == (["KeyboardInterrupt"] if number == SIGINT else [])
    assert sum(line.startswith("Traceback") for line in errors) == (1 if errors else 0), "\n".join(errors)


def wait_for(moment: str, program: Program, ranks: set[int]) -> None:
    """Until the program is in the midst of it."""
    program.wait_until(lambda: set(program.ranks()) == ranks)
    if moment == "loading":
        program.wait_until(lambda: "loading weights: " in program.err)
    elif moment != "starting":
        program.wait_until(lambda: "begin inference" in program.err + program.out)
    time.sleep(0 if moment == "starting" else 0.3)


def die(program: Program, death: Death) -> tuple[int, list[str]]:
    """Status and errors; all processes must be gone in time."""
    victim, number = death
    if victim == "group":
        os.killpg(program.pid, number)
    else:
        os.kill(program.ranks()[int(victim[5:])] if victim.startswith("rank") else program.pid, number)
    began = time.monotonic()
    status, _, err = program.finish(LIMIT_S)
    print(f"gone after {time.monotonic() - began:.2f} s")
    # Ranks that were not far enough to die with the parent find it gone, and say so.
    return status, [line for line in unlogged(err) if not line.startswith("the launcher of this rank ")]
