"""The launcher where memory is short: under ulimit and in a control group, from outside."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from atb_models.machine.cgroup import ROOT, cgroup_folders
from tests.wide import write_config

LIMIT = 2 << 30


# torch with CUDA maps more than the limit by itself.
without_cuda = pytest.mark.skipif(torch.version.cuda is not None, reason="torch's CUDA libraries take 3 GiB to map")


def limit_address_space() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT, LIMIT))


def writable_cgroup() -> Path | None:
    """This process's memory group, if groups can be made in it (v2 must also hand the controller down)."""
    for folder in cgroup_folders("memory"):
        v2 = (folder / "cgroup.subtree_control").exists()
        if os.access(folder, os.W_OK) and (not v2 or "memory" in (folder / "cgroup.subtree_control").read_text()):
            return folder
    return None


@pytest.fixture
def enter_cgroup() -> Iterator[Callable[[], None]]:
    """What puts a process into a group of 2 GiB."""
    parent = writable_cgroup()
    if parent is None:
        pytest.skip(f"no group can be made below {ROOT}, which takes root and a memory controller that is handed down")
    group = parent / f"atb_models_test_{os.getpid()}"
    group.mkdir()
    name = "memory.max" if (group / "memory.max").exists() else "memory.limit_in_bytes"
    (group / name).write_text(str(LIMIT))
    yield lambda: (group / "cgroup.procs").write_text(str(os.getpid())) and None
    end = time.monotonic() + 10
    while (group / "cgroup.procs").read_text() and time.monotonic() < end:
        time.sleep(0.05)
    group.rmdir()


@pytest.fixture(params=[pytest.param("ulimit", marks=without_cuda), "cgroup"])
def limited(request: pytest.FixtureRequest) -> Callable[[], None]:
    """What limits a program to 2 GiB before it starts."""
    return limit_address_space if request.param == "ulimit" else request.getfixturevalue("enter_cgroup")


def launch(limited: Callable[[], None], folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "atb_models.launch", "--device", "cpu", *flags]
    root = Path(__file__).resolve().parents[2]
    return subprocess.run(
        command, cwd=folder, env={**os.environ, "PYTHONPATH": str(root)}, preexec_fn=limited,
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def test_the_quick_start_runs_in_2_gib(limited: Callable[[], None], tmp_path: Path) -> None:
    """On 4 ranks where the limit is of all together, on 2 where it is of each."""
    ranks = "2" if limited is limit_address_space else "4"
    done = launch(limited, tmp_path, "--tp", ranks, "--input_texts", "Who is the CEO of Google?")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Answer[0]: Sundar Pichai")
    assert "memory of a rank: " in done.stderr


def test_what_cannot_fit_is_refused_before_a_weight_is_read(limited: Callable[[], None], tmp_path: Path) -> None:
    flags = ("--model_path", str(write_config(tmp_path)), "--load_format", "dummy", "--input_ids", "1,2")
    ranks = 1 if limited is limit_address_space else 2
    done = launch(limited, tmp_path, "--tp", str(ranks), *flags)
    assert done.returncode == 1 and not done.stdout
    assert "loading weights" not in done.stderr
    message = done.stderr[done.stderr.index("atb-models: error: ") :].splitlines()
    whose = "it needs 3" if ranks == 1 else "each of 2 ranks needs 15"
    needs = rf"atb-models: error: the model does not fit: {whose}\d?\.\d\d GiB and may use \d+\.\d"
    assert re.match(needs, message[0])
    assert [line.split()[0] for line in message[1:]] == [
        "weights", "activations", "left", "one", "what", "1.", "2.", "3.",
    ]  # fmt: skip
    assert message[1].split() == ["weights", "30.51" if ranks == 1 else "15.46", "GiB"]
    assert "left         0.0 MiB" in message[3]


@pytest.mark.full
@pytest.mark.parametrize(
    ("kind", "gib", "batch"),
    [
        pytest.param("ulimit", 3.5, 1, marks=without_cuda),
        pytest.param("ulimit", 4.0, 64, marks=without_cuda),
        ("cgroup", 3.25, 64),
    ],
)
def test_a_pool_that_a_limit_caps_bears_the_largest_steps(
    kind: str, gib: float, batch: int, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At real width, 2 layers: a pool that no full batch fits into, and every sampling option."""
    monkeypatch.setitem(globals(), "LIMIT", int(gib * (1 << 30)))
    limited = limit_address_space if kind == "ulimit" else request.getfixturevalue("enter_cgroup")
    ids = ",".join(map(str, range(1, 1900 if batch == 1 else 101)))
    done = launch(
        limited, tmp_path, "--tp", "1", "--model_path", str(write_config(tmp_path)), "--load_format", "dummy",
        "--config_overrides", '{"num_hidden_layers": 2}', "--input_ids", ids, "--max_batch_size", str(batch),
        "--max_output_length", "4", "--do_sample", "--temperature", "100", "--top_p", "0.9999",
        "--repetition_penalty", "1.1", "--presence_penalty", "0.1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    tokens = int(re.findall(r"KV cache .* \((\d+) tokens\)", done.stderr)[0])
    assert tokens <= 4096 * batch and (batch == 1 or tokens < 4096 * batch)
    assert done.stdout.count("Answer[") == batch
