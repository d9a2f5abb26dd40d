"""--kv_dtype on the command lines: answers, plan, graph and profile, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from atb_models import LLM, cli
from atb_models.command import exit_status
from atb_models.errors import ConfigError
from atb_models.launcher import main as run_pa
from tests.wide import write_config

INT8 = ["--device", "cpu", "--kv_dtype", "int8"]
QUESTION = ["--is_chat_model", "--input_texts", "Who is the CEO of Google?"]

pytestmark = pytest.mark.usefixtures("clean_environ")


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert run_pa.main(list(argv)) == 0
    return capsys.readouterr().out


def test_an_answer_on_two_ranks(root: Path) -> None:
    command = [sys.executable, "-m", "atb_models.launch", "--tp", "2", *INT8, *QUESTION]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "Answer[0]: Sundar Pichai is the CEO of Google." in done.stdout


@pytest.mark.parametrize("command", ["run", "launch", "chat", "serve", "batch", "plan", "graph"])
def test_another_type_is_refused_in_one_line(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exit_status.os, "environ", dict(exit_status.os.environ))
    files = ["in.jsonl", "out.jsonl"] if command == "batch" else []
    assert cli.main([command, *files, "--kv_dtype", "fp8"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("atb-models: error: ")
    assert all(word in line for word in ("--kv_dtype", "fp8", "auto", "int8"))


def test_another_type_is_refused_in_python() -> None:
    with pytest.raises(ConfigError, match="kv_dtype must be one of auto, int8, not 'fp8'"):
        LLM(kv_dtype="fp8")


def test_a_plan_of_an_int8_cache(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """DeepSeek-MoE-16B: 132 bytes in place of 256 for each head of 128, so nearly twice as many tokens fit."""
    folder = ["--model_path", str(write_config(tmp_path)), "--plan"]
    plain, int8 = (json.loads(run(capsys, *folder, *more, "--format", "json")) for more in (["--device", "cpu"], INT8))
    assert (plain["model"]["kv_dtype"], int8["model"]["kv_dtype"]) == (None, "int8")
    assert plain["memory"]["rank"]["kv_per_token"] == 28 * 2 * 16 * 256
    assert int8["memory"]["rank"]["kv_per_token"] == 28 * 2 * 16 * (128 + 4)
    assert plain["memory"]["rank"]["weights"] == int8["memory"]["rank"]["weights"]
    tokens = [[card["kv_tokens"]["64 GiB"] for card in plan["cards"]] for plan in (plain, int8)]
    assert all(1.93 < b / a < 1.95 for a, b in zip(*tokens, strict=True))
    for chip in ("Atlas 800I A2 32 GB", "H200"):
        times = [plan["chips"][chip]["times"][6]["per_token_s"] for plan in (plain, int8)]  # a batch of 64
        assert times[1]["memory"] < 0.8 * times[0]["memory"]
        assert times[1]["compute"] == pytest.approx(times[0]["compute"], rel=1e-3), "the arithmetic is that of floats"
    assert all(chip["served"] for chip in (*plain["chips"].values(), *int8["chips"].values()))
    text = run(capsys, *folder, *INT8)
    assert "run         fp16, KV cache as int8, 1 rank;" in text and "refuses" not in text


def test_the_graph_names_it_and_shows_the_planes(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--print_graph", *INT8, "--quantize", "w8a16"]
    assert run(capsys, *words).startswith(
        "graph of embedded checkpoint, fp16, weights as w8a16, KV cache as int8, rank"
    )
    graph = json.loads(run(capsys, "--print_graph", *INT8, "--format", "json"))["decode"]
    assert (graph["dtype"], graph["kv_dtype"]) == ("float16", "int8")
    arguments = ({value["argument"]: value["dtype"] for value in node["inputs"]} for node in graph["nodes"])
    dtypes = next(named for named in arguments if "k_cache_PSMD" in named)
    assert dtypes["k_cache_PSMD"] == dtypes["v_cache_PSMD"] == "int8"
    assert dtypes["k_scale_cache_PSMD"] == dtypes["v_scale_cache_PSMD"] == "float32"


def test_the_profile_names_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROFILING_FILEPATH", str(tmp_path))
    assert run_pa.main(["--profile", "--chip", "H200", *INT8, *QUESTION]) == 0
    assert "fp16, KV cache as int8 on cpu" in capsys.readouterr().err
    profile = json.loads((tmp_path / "profile.json").read_text())
    assert profile["kv_dtype"] == "int8"
