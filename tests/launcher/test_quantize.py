"""--quantize on the command lines: answers, plan, graph and profile, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

from atb_models import LLM, cli
from atb_models.command import exit_status
from atb_models.errors import ConfigError
from atb_models.launcher import main as run_pa
from tests.wide import write_config

INT8 = ["--device", "cpu", "--quantize", "w8a16"]
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
def test_another_method_is_refused_in_one_line(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exit_status.os, "environ", dict(exit_status.os.environ))
    files = ["in.jsonl", "out.jsonl"] if command == "batch" else []
    assert cli.main([command, *files, "--quantize", "w4"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("atb-models: error: ") and "--quantize" in line and "w4" in line and "w8a16" in line


def test_another_method_is_refused_in_python() -> None:
    with pytest.raises(ConfigError, match="quantize must be one of w8a16, w4a16, w8a8_dynamic, not 'w4'"):
        LLM(quantize="w4")


def test_a_plan_of_int8_weights(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """DeepSeek-MoE-16B: half of it, but for embedding, head and norms; and decoding reads half as much."""
    folder = ["--model_path", str(write_config(tmp_path)), "--plan"]
    plain, int8 = (json.loads(run(capsys, *folder, *more, "--format", "json")) for more in (["--device", "cpu"], INT8))
    assert (plain["model"]["quantize"], int8["model"]["quantize"]) == (None, "w8a16")
    assert plain["model"]["parameters"] == int8["model"]["parameters"]
    weights = [plan["memory"]["rank"]["weights"] for plan in (plain, int8)]
    floats = 2 * 2 * 102400 * 2048
    assert 0.5 < (weights[1] - floats) / (weights[0] - floats) < 0.51
    assert plain["memory"]["rank"]["kv_per_token"] == int8["memory"]["rank"]["kv_per_token"]
    for chip in ("Atlas 800I A2 32 GB", "H200"):
        times = [plan["chips"][chip]["times"][0]["per_token_s"] for plan in (plain, int8)]
        assert 0.5 < times[1]["memory"] / times[0]["memory"] < 0.65
        assert times[1]["compute"] == times[0]["compute"], "activations are floats, and so is the arithmetic"
    served = {name: (plain["chips"][name]["served"], chip["served"]) for name, chip in int8["chips"].items()}
    assert set(served.values()) == {(True, True)}
    text = run(capsys, *folder, *INT8)
    assert "run         fp16, weights as w8a16, 1 rank;" in text
    assert "refuses quantised weights" not in text


@pytest.mark.parametrize(("quantize", "low", "high"), [("w4a16", 0.26, 0.28), ("w8a8_dynamic", 0.5, 0.51)])
def test_a_plan_of_other_storages(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, quantize: str, low: float, high: float
) -> None:
    """Weights of DeepSeek-MoE-16B but for embedding, head and norms; int8 activations have the rate of int8."""
    folder = ["--model_path", str(write_config(tmp_path)), "--device", "cpu", "--plan", "--format", "json"]
    plain, other = (json.loads(run(capsys, *folder, *more)) for more in ([], ["--quantize", quantize]))
    assert other["model"]["quantize"] == quantize and plain["model"]["parameters"] == other["model"]["parameters"]
    weights = [plan["memory"]["rank"]["weights"] - 2 * 2 * 102400 * 2048 for plan in (plain, other)]
    assert low < weights[1] / weights[0] < high
    first = [plan["chips"]["H200"]["times"][0]["first_token_s"]["compute"] for plan in (plain, other)]
    assert first[1] == first[0] if quantize == "w4a16" else 0.5 < first[1] / first[0] < 0.6
    text = run(capsys, *folder[:-2], "--quantize", quantize)
    assert f"fp16, weights{' and activations' if quantize != 'w4a16' else ''} as {quantize}, 1 rank;" in text


def test_the_graph_of_int8_activations_shows_the_parts_that_torch_computes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the four layers, one dense: 8 linear maps of attention, 8 of dense and shared experts; 3 with routed experts,
    whose first product shares the integers of a token among its experts."""
    monkeypatch.setenv("ATB_CPU_ISA", "reference")
    found = run(capsys, "--print_graph", "--device", "cpu", "--quantize", "w8a8_dynamic", "--format", "json")
    decode = json.loads(found)["decode"]
    wanted = {"Linear": 1, "QuantMatmul": 16, "QuantGroupedMatmul": 6, "Quantize": 16 + 6, "MoeRouteScales": 3}
    assert {name: decode["counts"].get(name) for name in wanted} == wanted and decode["stray"] == []
    assert not {"QuantLinear", "QuantMoeExperts"} & decode["counts"].keys()


@pytest.fixture
def described(tmp_path: Path) -> Path:
    """config.json and the description of a checkpoint whose weights are elsewhere: attention int8, the rest floats."""
    tensors = tiny.write_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    kinds = {name: "W8A8_DYNAMIC" if "self_attn" in name else "FLOAT" for name in tensors}
    (tmp_path / "quant_model_description.json").write_text(json.dumps({"model_quant_type": "W8A8_DYNAMIC"} | kinds))
    return tmp_path


def test_a_quantised_checkpoint_is_planned_from_its_description(
    capsys: pytest.CaptureFixture[str], described: Path
) -> None:
    folder = ["--model_path", str(described), "--device", "cpu", "--plan"]
    plan = json.loads(run(capsys, *folder, "--format", "json"))
    assert plan["model"]["quantize"] == "w8a8_dynamic"
    (described / "quant_model_description.json").unlink()
    floats = json.loads(run(capsys, *folder, "--format", "json"))
    config = json.loads((described / "config.json").read_text())
    size, layers = config["hidden_size"], config["num_hidden_layers"]
    saved = floats["memory"]["rank"]["weights"] - plan["memory"]["rank"]["weights"]
    assert saved == layers * (4 * size * size - 4 * 4 * size), "a byte of each number, less a scale of each output"


def test_a_method_beside_quantised_weights_is_refused(described: Path, root: Path) -> None:
    """Both are named, before any weight is looked for."""
    command = [sys.executable, "-m", "atb_models", "run", "--model_path", str(described), *INT8, *QUESTION]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2 and done.stdout == ""
    why = "but the checkpoint's weights are quantised already (ModelSlim, w8a8_dynamic)"
    assert done.stderr.splitlines()[-1].endswith(f"quantize is w8a16, {why}; leave it out")


def test_dummy_weights_stand_for_quantised_ones(capsys: pytest.CaptureFixture[str], described: Path) -> None:
    words = ["--model_path", str(described), "--device", "cpu", "--load_format", "dummy", "--max_output_length", "4"]
    assert "Generate[0] token num: 4" in run(capsys, *words, "--input_ids", "5,6,7", "--ignore_eos")


# Weights of a layer's linear maps, as operations name them: alone, and as parts of a sublayer.
LINEAR_MAPS = {"weight_OI", "gate_up_EGH", "down_EHF", "qkv_weight_OH", "o_weight_HI"} | {
    "gate_up_weight_GH", "down_weight_HF", "experts_gate_up_weight_EGH", "experts_down_weight_EHF"
}  # fmt: skip


def test_the_graph_names_the_method_and_int8_weights(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "--print_graph", *INT8).startswith("graph of embedded checkpoint, fp16, weights as w8a16, rank")
    graph = json.loads(run(capsys, "--print_graph", *INT8, "--format", "json"))["decode"]
    assert (graph["dtype"], graph["quantize"]) == ("float16", "w8a16")
    stored = {
        value["dtype"]
        for node in graph["nodes"]
        for value in node["inputs"]
        if value["argument"] in LINEAR_MAPS and node["module"] != "lm_head"
    }
    assert stored == {"int8"}


def test_the_profile_names_the_method(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROFILING_FILEPATH", str(tmp_path))
    monkeypatch.setenv("ATB_CPU_ISA", "reference")  # which computes each linear map by itself
    assert run_pa.main(["--profile", "--chip", "H200", *INT8, *QUESTION]) == 0
    assert "fp16, weights as w8a16 on cpu" in capsys.readouterr().err
    profile = json.loads((tmp_path / "profile.json").read_text())
    assert profile["quantize"] == "w8a16"
    read = {row["name"]: row["bytes_read"] / row["calls"] for row in profile["modules"]}
    assert read["layers.*.mlp.shared.down"] < 2 * 128 * 128, "a row of bytes and a scale"
