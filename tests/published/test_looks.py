"""The names of published models in the place of a folder: --plan and --print_graph take them, a run does not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from atb_models import cli
from atb_models.launcher import main as run_pa
from atb_models.published import NAMES

NAME = "deepseek-ai/deepseek-moe-16b-chat"
SCRIPTS = {
    "qwen": "Qwen/Qwen1.5-MoE-A2.7B-Chat",
    "xverse": "xverse/XVERSE-MoE-A4.2B",
    "qwen3": "Qwen/Qwen3-30B-A3B",
    "mixtral": "mistralai/Mixtral-8x7B-Instruct-v0.1",
    "llama": "meta-llama/Llama-3.1-8B-Instruct",
    "deepseek_v2": "deepseek-ai/DeepSeek-V2-Lite-Chat",
}
# A process in which no connection can be made.
OFFLINE = """
import socket, sys
def refuse(*_, **__):
    raise OSError("this test has no network")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
from atb_models.cli import main
sys.exit(main(sys.argv[1:]))
"""

FULL = pytest.mark.full
pytestmark = pytest.mark.usefixtures("clean_environ")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder that holds nothing."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ended(capsys: pytest.CaptureFixture[str], status: int) -> tuple[int, str, str]:
    return status, *capsys.readouterr()


def plan(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """`atb-models plan` in this process: status, output, errors."""
    return ended(capsys, cli.main(["plan", "--device", "cpu", "--format", "json", *words]))


def test_a_plan_needs_neither_weights_nor_a_network(root: Path, elsewhere: Path) -> None:
    command = [sys.executable, "-c", OFFLINE, "plan", "Qwen/Qwen3-30B-A3B", "--device", "cpu"]
    environ = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(command, cwd=elsewhere, env=environ, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("plan of Qwen3-30B-A3B\n") and "  parameters  30,532,122,624 in all" in done.stdout
    assert (
        "Qwen/Qwen3-30B-A3B: the config.json that comes with this package, from"
        " https://huggingface.co/Qwen/Qwen3-30B-A3B/blob/main/config.json" in done.stderr
    )


@pytest.mark.parametrize("typed", ["Deepseek-MoE-16B-Chat", NAME])
def test_a_graph_takes_a_name(capsys: pytest.CaptureFixture[str], typed: str) -> None:
    status, out, err = ended(capsys, run_pa.main(["--print_graph", "--device", "cpu", "--model_path", typed]))
    assert status == 0 and out.startswith("graph of deepseek-moe-16b-chat"), err


@FULL
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("tp", ["1", "3", "8"])
def test_every_name_has_a_plan_and_a_graph(capsys: pytest.CaptureFixture[str], name: str, tp: str) -> None:
    status, out, err = plan(capsys, name, "--tp", tp)
    assert status == 0 and json.loads(out)["ranks"] == int(tp), err
    assert ended(capsys, cli.main(["graph", name, "--device", "cpu", "--tp", tp]))[0] == 0


@pytest.mark.parametrize(
    ("folder", "flag"), [("llama", "--print_graph"), *(pytest.param(one, "--plan", marks=FULL) for one in SCRIPTS)]
)
def test_a_script_looks_at_its_model(root: Path, elsewhere: Path, folder: str, flag: str) -> None:
    (script,) = (root / "examples" / "models" / folder).glob("*.sh")
    command = ["bash", str(script), flag, "--device", "cpu", "--tp", "2"]
    environ = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run(command, cwd=elsewhere, env=environ, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    what = "plan" if flag == "--plan" else "graph"
    assert done.stdout.startswith(f"{what} of {SCRIPTS[folder].partition('/')[2]}")


def test_a_folder_of_that_name_comes_first(capsys: pytest.CaptureFixture[str], demo: Path, elsewhere: Path) -> None:
    (elsewhere / NAME).mkdir(parents=True)
    graph = ["--print_graph", "--device", "cpu", NAME]
    status, out, err = ended(capsys, run_pa.main(graph))
    assert (status, out) == (2, "") and f"model_path {NAME} holds no config.json" in err
    shutil.copy(demo / "config.json", elsewhere / NAME)
    status, out, err = ended(capsys, run_pa.main(graph))
    assert status == 0 and "layers.1-3 x 3" in out and "comes with this package" not in err, out


@pytest.mark.parametrize(
    ("typed", "hint"),
    [
        ("Qwen/Qwen3-30B", "; did you mean Qwen/Qwen3-30B-A3B"),
        ("mixtral-8x7b", "; did you mean mistralai/Mixtral-8x7B-Instruct-v0.1"),
        ("no/such/folder", ". The names that are known:"),
    ],
)
def test_an_unknown_name_ends_with_those_that_are_known(
    capsys: pytest.CaptureFixture[str], elsewhere: Path, typed: str, hint: str
) -> None:
    status, out, err = plan(capsys, typed)
    assert (status, out) == (2, "")
    first, *known = err.splitlines()
    assert first.startswith(f"atb-models: error: model_path {typed} is no folder (looked for {elsewhere / typed}),")
    assert "nor the name of a known model" + hint in first
    assert tuple(line.strip() for line in known) == NAMES


@pytest.mark.parametrize("words", [[], ["--load_format", "dummy"]])
def test_a_run_needs_the_weights(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    status, out, err = ended(capsys, run_pa.main(["--device", "cpu", "--model_path", NAME, *words]))
    assert (status, out) == (2, "")
    assert f"model_path {NAME} is no folder" in err and f"  hf download {NAME} --local-dir " in err


def test_help_lists_the_names(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "4000")
    for command in ("plan", "graph"):
        status, out, _ = ended(capsys, cli.main([command, "--help"]))
        assert status == 0 and f"the name of a published model: {', '.join(NAMES)}" in out
