"""--plan from outside: what it prints, within what time and memory, and what it refuses."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from atb_models.launcher import main as run_pa
from tests.plan.test_chips import entry

# Runs run_pa.py with the arguments and ends with a line of its processor time in s and its largest memory in KiB.
MEASURED = """
import resource, subprocess, sys
status = subprocess.run([sys.executable, "run_pa.py", *sys.argv[1:]]).returncode
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(used.ru_utime + used.ru_stime, used.ru_maxrss, file=sys.stderr)
sys.exit(status)
"""


def plan(root: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", MEASURED, "--plan", "--device", "cpu", *arguments]
    return subprocess.run(
        command, cwd=root, env={**os.environ, **environ}, capture_output=True, text=True, timeout=120, check=False
    )


def inside(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """run_pa in this process, which has torch already: status, output, errors."""
    status = run_pa.main(["--device", "cpu", *arguments])
    return status, *capsys.readouterr()


def test_the_real_model_within_seconds_and_a_gibibyte(root: Path, shared: Path) -> None:
    folder = shared / "headers" / "deepseek-moe-16b-base"
    done = plan(root, "--format", "json", "--model_path", str(folder), "--tp", "8")
    assert done.returncode == 0, done.stderr
    seconds, kibibytes = map(float, done.stderr.splitlines()[-1].split())
    assert seconds < 15 and kibibytes < 1 << 20
    found = json.loads(done.stdout)
    assert found["model"]["parameters"] == {"total": 16_375_728_128, "active": 2_828_650_496}
    assert found["ranks"] == 8 and len(found["chips"]) == 6
    assert found["memory"]["all"]["weights"] == 8 * found["memory"]["rank"]["weights"]
    assert 2 * 16_375_728_128 < found["memory"]["all"]["weights"] < 2.2 * 16_375_728_128  # routers and norms are copies
    assert found["memory"]["all"]["kv_per_token"] == 28 * 2 * 2048 * 2
    for chip in found["chips"].values():
        assert len(chip["times"]) == 28 and all(figure["source"] for figure in chip["figures"].values())
    slow, fast = (found["chips"][name]["times"][0]["per_token_s"] for name in ("Atlas 800I A2 32 GB", "H200"))
    assert slow["memory"] == pytest.approx(6 * fast["memory"])  # 800 and 4,800 GB/s
    assert slow["communication"] > 57 * 390e-6


def test_the_text_of_the_embedded_model(root: Path) -> None:
    done = plan(root, "--tp", "3")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    # 81 lines, and a further one for each rate of this CPU that was measured with fewer threads than it has
    assert len(lines) <= 85 and max(map(len, lines[1:])) <= 100 and done.stdout.isascii()
    assert "deepseek, 4 layers, 3 with 16 routed experts, 4 a token" in lines[1]
    for title in ("memory ", "what fits", "roofline times in ms on 3 ranks", "this CPU (", "figures and their sources"):
        assert sum(line.startswith(title) for line in lines) == 1, title
    padding = [line for line in lines if line.startswith("  padding ")]
    assert len(padding) == 1 and padding[0].endswith(" 11.1 % of the KV cache are zeros: 3 heads a rank, 9 for 8")
    assert sum(line.startswith("  H200 ") for line in lines) == 2
    assert any("measured now" in line for line in lines)


@pytest.mark.parametrize("blocks", [[], ["--kv_blocks", "3"]])
def test_the_plan_and_a_start_agree_on_the_tokens(capsys: pytest.CaptureFixture[str], blocks: list[str]) -> None:
    flags = ["--tp", "1", "--max_batch_size", "2", *blocks]
    planned, out, _ = inside(capsys, "--plan", "--format", "json", "--chip", "h200", *flags)
    started, _, err = inside(capsys, "--max_output_length", "1", *flags)
    tokens = re.search(r"KV cache .* \((\d+) tokens\)", err)
    assert (planned, started) == (0, 0) and tokens
    assert json.loads(out)["memory"]["kv_tokens_here"] == int(tokens[1]) == (3 * 128 if blocks else 2 * 8192)


@pytest.mark.skipif(torch.version.cuda is not None, reason="torch's CUDA libraries take 3 GiB to map")
@pytest.mark.parametrize("mebibytes", [600, 690, 800])
def test_little_address_space_costs_the_measurement_only(root: Path, mebibytes: int) -> None:
    limit = f"ulimit -v {mebibytes << 10}; exec {sys.executable} run_pa.py --plan --device cpu"
    done = subprocess.run(["bash", "-c", limit], cwd=root, capture_output=True, text=True, timeout=120, check=False)
    if mebibytes < 704:  # what a trace itself imports
        assert done.returncode != 0 and not done.stdout
        assert f"ulimit -v allows {mebibytes} MiB of address space" in done.stderr and done.stderr.count("\n") == 1
    else:
        assert done.returncode == 0, done.stderr
        assert "  this CPU is left out: there is too little memory to measure it\n" in done.stdout


def test_looking_needs_no_port(root: Path) -> None:
    with socket.create_server(("", 0)) as listener:
        environ = {**os.environ, "MASTER_PORT": str(listener.getsockname()[1]), "MASTER_ADDR": "192.0.2.1"}
        command = [sys.executable, "-m", "atb_models.launch", "--print_graph", "--device", "cpu", "--tp", "2"]
        done = subprocess.run(command, cwd=root, env=environ, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0 and done.stdout.startswith("graph of embedded checkpoint"), done.stderr


def test_a_chip_of_ones_own_and_pairs_that_are_left_out(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "chips.json"
    file.write_text(json.dumps([entry(memory_gb={"value": 3.1, "source": "a test"})]))
    limits = ["--max_position_embeddings", "1024", "--max_input_length", "100"]
    status, out, err = inside(capsys, "--plan", "--chips_file", str(file), "--chip", "mine", "--dtype", "bf16", *limits)
    assert status == 0, err
    assert "Mine (one chip), 1 rank" in out and "this CPU (" not in out
    assert "no figure for bf16: priced at the chip's fastest" in out
    assert "1024, 1024 is left out: the model has 1024 positions" in out
    assert "  bandwidth_gb_s 100: a test" in out.splitlines()
    rows = [line for line in out.splitlines() if line.startswith("     512    512")]
    assert len(rows) == 7 and rows[-1].endswith("*") and not rows[0].endswith("*")  # 3 of its 3.1 GiB are kept free


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--chip", "TPU"], "there is no chip 'TPU' in the table; it has Atlas 800I A2 32 GB"),
        (["--tp", "9"], "9 ranks cannot share 8 attention heads"),
        (["--format", "dot"], "--format dot is of --print_graph"),
    ],
)
def test_mistakes_end_with_status_2(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    status, out, err = inside(capsys, "--plan", *arguments)
    assert status == 2 and message in err and not out
