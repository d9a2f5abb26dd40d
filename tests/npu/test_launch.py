"""The launcher on pretend devices, from the command line to the answer."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from atb_models.demo import demo_path, questions
from atb_models.models.config_reader import load_model_config
from atb_models.text.tokenizer import load_tokenizer
from tests.launcher.processes import SCRIPT, Program
from tests.npu.conftest import NATIVE, Run

# run_pa, which says at its end what the engine went through.
RUN_PA = """
import json, sys
from atb_models import LLM
from atb_models.launcher.main import main

def close(llm, end=LLM.close):
    print(json.dumps(llm.metrics() | {"device": str(llm.device)}))
    end(llm)

LLM.close = close
sys.exit(main(sys.argv[1:]))
"""
# Six requests for four places, prompts in chunks, and too few blocks for the answers of all four.
CROWDED = (
    *("--max_batch_size", "4", "--max_prefill_tokens", "32", "--kv_blocks", "5"),
    *("--max_output_length", "24", "--ignore_eos", "--input_ids"),
)


@pytest.fixture(scope="module")
def crowd() -> list[str]:
    """Flags with short requests, and with others that begin alike and are about to fill their second block."""
    tokenizer = load_tokenizer(demo_path())
    assert tokenizer is not None
    known = list(questions())
    alike = tokenizer.encode(" ".join(f"{one['question']}{one['answer']}" for one in known))
    prompts = [alike[:250] + alike[300 + k : 303 + k] for k in range(3)]
    prompts[1:1] = [tokenizer.encode(str(one["question"])) for one in known[:3]]
    return [*CROWDED, *(",".join(map(str, prompt)) for prompt in prompts)]


@pytest.mark.parametrize(
    ("words", "quantize"), [(("run",), "w8a16"), (("run",), "w4a16"), (("launch", "--tp", "2"), "w8a8_dynamic")]
)
def test_quantised_weights_answer(soft_npu: Run, words: tuple[str, ...], quantize: str) -> None:
    flags = ("--device", "npu", "--max_output_length", "3", "--quantize", quantize)
    done = soft_npu("-m", "atb_models", *words, *flags, devices=2)
    assert done.returncode == 0 and "Answer[0]: Deep learning is" in done.stdout, done.stderr


def test_the_plan_of_quantised_weights_says_no_refusal(soft_npu: Run) -> None:
    done = soft_npu("-m", "atb_models", "run", "--plan", "--device", "npu", "--quantize", "w4a16")
    assert done.returncode == 0 and "w4a16" in done.stdout and "refuses" not in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("words", [("run",), ("launch", "--tp", "2")])
def test_an_int8_cache_answers(soft_npu: Run, words: tuple[str, ...]) -> None:
    flags = ("--device", "npu", "--max_output_length", "3", "--kv_dtype", "int8")
    done = soft_npu("-m", "atb_models", *words, *flags, devices=2)
    assert done.returncode == 0 and "Answer[0]: Deep learning is" in done.stdout, done.stderr


def test_the_plan_and_the_graph_of_an_int8_cache(soft_npu: Run) -> None:
    plan = soft_npu("-m", "atb_models", "run", "--plan", "--device", "npu", "--kv_dtype", "int8")
    assert plan.returncode == 0 and "KV cache as int8" in plan.stdout and "refuses" not in plan.stdout, plan.stderr
    done = soft_npu("-m", "atb_models", "graph", "--format", "json", "--device", "npu", "--kv_dtype", "int8")
    assert done.returncode == 0, done.stderr
    graph = json.loads(done.stdout[done.stdout.index("{") :])
    for step in (graph["prefill"], graph["decode"]):
        backends = {(node["op"], node["backend"]) for node in step["nodes"]}
        assert {("ReshapeAndCache", "npu"), ("PagedAttention", "npu")} <= backends
        shapes = {value["argument"]: value["shape"] for node in step["nodes"] for value in node["inputs"]}
        _, block_size, kv_heads, _ = shapes["k_cache_PSMD"]
        assert shapes["k_scale_cache_PMS"][1:] == shapes["v_scale_cache_PMS"][1:] == [kv_heads, block_size]


@pytest.fixture(scope="module")
def answers(crowd: list[str], root: Path) -> str:
    """What a CPU gives."""
    command = [sys.executable, str(root / "run_pa.py"), "--device", "cpu", *crowd]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "Answer[1]: Sundar Pichai is the CEO of Google." in done.stdout, done.stderr
    return done.stdout


def test_a_crowd_gets_the_answers_of_a_cpu(soft_npu: Run, crowd: list[str], answers: str) -> None:
    done = soft_npu("-c", RUN_PA, "--device", "npu", *crowd)
    assert done.returncode == 0, done.stderr
    *given, last = done.stdout[done.stdout.index("Answer[0]") :].splitlines(keepends=True)
    assert "".join(given) == answers
    metrics = json.loads(last)
    assert (metrics["device"], metrics["largest_batch"]) == ("npu:0", 4)
    assert metrics["chunks"] > 20 and metrics["preemptions"] > 0 and metrics["prefix_hit_tokens"] >= 256


def test_the_run_script_has_a_rank_on_each_of_two_devices(
    soft_npu: Run, crowd: list[str], answers: str, root: Path
) -> None:
    done = soft_npu(
        str(root / SCRIPT), "--device", "npu", *crowd,
        program="bash", devices=8, PYTHON=sys.executable, ASCEND_RT_VISIBLE_DEVICES="4,6",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout[done.stdout.index("Answer[0]") :] == answers


def test_more_ranks_than_devices_are_refused(soft_npu: Run) -> None:
    refused = soft_npu("-m", "atb_models.cli", "launch", "--device", "npu", "--tp", "3", devices=2)
    assert refused.returncode == 2
    assert "--tp 3 needs 3 devices, 2 exist; lower it, or run on --device cpu" in refused.stderr


def test_ctrl_c_ends_every_rank(soft_npu: Run, root: Path, tmp_path: Path) -> None:
    from tests.npu.soft import environment

    flags = ["--device", "npu", "--tp", "2", "--max_output_length", "8000", "--ignore_eos"]
    with Program([sys.executable, str(root / "run_pa.py"), *flags], tmp_path, **environment(2)) as run:
        run.wait_until(lambda: "begin inference" in run.err, timeout=120)
        os.killpg(run.pid, signal.SIGINT)
        status, _, err = run.finish(timeout=20)
    assert status == 130 and "Traceback" not in err, err


FOLDERS = (
    *("golden/deepseek_d128", "headers/deepseek-moe-16b-base"),
    *("headers/qwen1.5-moe-a2.7b-chat", "headers/xverse-moe-a4.2b"),
)
GRAPHS = """
import sys
from atb_models import cli
for folder in sys.argv[1:]:
    assert cli.main(["graph", "--device", "npu", "--format", "json", "--tp", "8", "--model_path", folder]) == 0
"""


def test_printed_graphs_show_no_fallback(soft_npu: Run, shared: Path) -> None:
    done = soft_npu("-c", GRAPHS, *(str(shared / name) for name in FOLDERS))
    assert done.returncode == 0, done.stderr
    printed = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    for name, graph in zip(FOLDERS, printed, strict=True):
        config = load_model_config(shared / name, log=False)
        layers, moe = config.num_hidden_layers, sum(config.moe_layers)
        for step in (graph["prefill"], graph["decode"]):
            backends = {(node["op"], node["backend"]) for node in step["nodes"]}
            assert {pair for pair in backends if pair[0] in NATIVE} == {(op, "npu") for op in NATIVE}
            calls = step["counts"]
            assert (calls["PagedAttention"], calls["ReshapeAndCache"]) == (layers, layers)
            once = ("MoeGating", "MoeInitRouting", "MoeFinalizeRouting")
            assert [calls["GroupedMatmul"], *(calls[op] for op in once)] == [2 * moe, moe, moe, moe]
