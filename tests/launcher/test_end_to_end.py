"""run_pa and its launch script from the command line to the answer."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys

import pytest
import tiny
import torch

from atb_models.demo import questions
from atb_models.launcher import main as run_pa
from tests.launcher.processes import any_port, run_script

QUESTION = "Who is the CEO of Google?"
IDS = ["--input_ids", "1,5,9,20", "3,4,5"]

pytestmark = pytest.mark.usefixtures("clean_environ")


@pytest.fixture(scope="module")
def answer():
    """What the embedded checkpoint knows of the default question."""
    return next(str(one["answer"]).strip() for one in questions() if one["question"] == QUESTION)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A tiny random model without tokenizer files, in a folder with blanks."""
    folder = tmp_path_factory.mktemp("all my") / "tiny weights"
    tiny.write_checkpoint(folder)
    return str(folder)


def run(capsys, *argv):
    """run_pa in this process: status, output, errors."""
    before = dict(os.environ)
    try:
        status = run_pa.main(argv)
    finally:
        os.environ.clear()
        os.environ.update(before)
    return status, *capsys.readouterr()


def test_ids_in_ids_out(capsys, weights):
    status, out, err = run(capsys, "--model_path", weights, *IDS, "--max_output_length", "4", "--ignore_eos")
    assert status == 0, err
    assert re.fullmatch(
        r"Answer\[0\]: (\d+,){3}\d+\nGenerate\[0\] token num: 4\n"
        r"Answer\[1\]: (\d+,){3}\d+\nGenerate\[1\] token num: 4\n",
        out,
    )
    names = ("[MODEL_PATH]: ", "-begin inference-", "--total req num: 2, infer start--", "-end inference-")
    assert [name in err for name in names] == [True] * 4
    assert "error" not in err


def test_a_sliding_window_is_refused_with_a_remedy_that_works(capsys, tmp_path):
    tiny.write_checkpoint(tmp_path, family="mistral", sliding_window=64)
    words = ["--model_path", str(tmp_path), "--input_ids", "1,5,9", "--max_output_length", "4", "--ignore_eos"]
    status, out, err = run(capsys, *words)
    assert (status, out) == (2, "") and "config.json: sliding_window is 64, but sliding windows are not" in err
    (overrides,) = re.findall(r"--config_overrides '(.*)'", err)
    status, out, err = run(capsys, *words, "--config_overrides", overrides)
    assert status == 0 and "Generate[0] token num: 4" in out, err
    status, _, err = run(capsys, *words[:-2], "62", "--config_overrides", overrides)
    assert status == 2 and "62 need 65 positions" in err


def test_files(capsys, weights, tmp_path, monkeypatch):
    for name in ("BENCHMARK", "LOGITS_SAVE", "TOKEN_IDS_SAVE"):
        monkeypatch.setenv(f"ATB_LLM_{name}_ENABLE", "1")
    monkeypatch.setenv("ATB_LLM_LOGITS_SAVE_FOLDER", str(tmp_path / "logits"))
    monkeypatch.setenv("ATB_LLM_TOKEN_IDS_SAVE_FOLDER", str(tmp_path / "ids"))
    monkeypatch.chdir(tmp_path)
    flags = ["--input_ids", "1,5,9", "--max_batch_size", "2", "--max_output_length", "5", "--ignore_eos"]
    status, out, err = run(capsys, weights, *flags)
    assert status == 0, err
    with open("benchmark_result/benchmark.csv", newline="") as stream:
        (row,) = csv.DictReader(stream)
    assert (row["batch_size"], row["input_seq_len"], row["output_seq_len"]) == ("2", "3", "5")
    decode = [float(word) for word in row["decode_token_times"].split(",")]
    assert len(decode) == 4  # the first of five tokens comes from prefill; the warm-up's steps are left out
    assert float(row["decoder_token_time(ms)"]) == pytest.approx(1e3 * sum(decode) / 4, abs=0.01)
    assert (
        err.index("begin warm_up") < err.index("end warm_up") < err.index("begin inference") < err.index("Prefill time")
    )

    answers = re.findall(r"Answer\[\d\]: (.*)", out)
    assert [(tmp_path / "ids" / f"output_ids_{i}.txt").read_text() for i in (0, 1)] == [
        a.replace(",", " ") for a in answers
    ]
    assert torch.load(tmp_path / "ids" / "input_ids_0.pth").tolist() == [1, 5, 9]
    logits = [torch.load(tmp_path / "logits" / f"logits_{n}.pth") for n in range(5)]
    assert {tuple(one.shape) for one in logits} == {(2, 256)}
    assert ",".join(str(one[0].argmax().item()) for one in logits) == answers[0]


@pytest.mark.parametrize(
    ("argv", "status", "message"),
    [
        (["--input_texts", "Hi"], 2, "a text prompt needs the tokenizer files"),
        (["--input_ids", "999"], 2, "the prompt has token id 999; ids go from 0 to 255"),
        (["--input_ids", "1", "--max_output_length", "512"], 2, "need 513 positions"),
        (["--input_ids", "1", "--tp", "9"], 2, "9 ranks cannot share 8 attention heads"),
        (["--input_ids", "1", "--device", "npu"], 2, "device npu"),
    ],
)
def test_mistake_is_one_line(capsys, weights, argv, status, message):
    seen, out, err = run(capsys, "--model_path", weights, *argv)
    assert (seen, out) == (status, "")
    assert re.fullmatch(r"atb-models: error: .*" + re.escape(message) + ".*", err.splitlines()[-1])


def test_long_prompt_is_run_with_a_warning(capsys, weights):
    status, out, err = run(capsys, "--model_path", weights, "--input_ids", "1,2,3", "--max_input_length", "2")
    assert status == 0
    assert "request 0 has 3 prompt tokens, more than --max_input_length 2; it was run whole" in err


@pytest.mark.parametrize("flags", [[], ["--stream"]])
def test_embedded_checkpoint_answers(capsys, answer, flags):
    texts = ["--input_texts", QUESTION, QUESTION, "--max_batch_size", "2"]
    status, out, err = run(capsys, "--is_chat_model", *texts, "--max_output_length", "10", *flags)
    assert status == 0, err
    answers = re.findall(r"Answer\[(\d)\]: (.*)\nGenerate\[\d\] token num: (\d+)\n", out)
    assert [(i, text) for i, text, _ in answers] == [("0", answer), ("1", answer)]
    assert "no --model_path: the embedded toy checkpoint answers" in err


def test_script_starts_ranks_that_answer_as_one(capsys, root, tmp_path, weights):
    flags = [*IDS, "--max_output_length", "6"]
    _, alone, _ = run(capsys, "--model_path", weights, "--is_chat_model", *flags, "--dtype", "fp32")
    status, out, err = run_script(root, tmp_path, weights, "-trust_remote_code", *flags, "--dtype", "fp32")
    assert (status, out) == (0, alone), err
    assert "[TRUST_REMOTE_CODE]: true" in err
    assert "Setting OMP_NUM_THREADS" not in err and "without effect on cpu" not in err


def test_script_answers_its_question_without_weights(root, tmp_path, answer):
    status, out, err = run_script(root, tmp_path, ranks=1)
    assert status == 0, err
    assert out.startswith(f"Answer[0]: {answer}\nGenerate[0] token num: ")


def test_more_ranks_than_heads(root, tmp_path, weights):
    status, out, err = run_script(root, tmp_path, weights, "--input_ids", "1", ranks=9)
    assert (status, out) == (2, "")
    errors = [line for line in err.splitlines() if "error" in line.lower()]
    assert len(errors) == 1, err
    assert errors[0] == (
        "atb-models: error: 9 ranks cannot share 8 attention heads; this model runs on any number of ranks up to 8"
    )


def test_torchrun_starts_run_pa(root, weights):
    flags = ["--nproc_per_node=2", f"--master_port={any_port()}"]
    command = [sys.executable, "-m", "torch.distributed.run", *flags]
    argv = [str(root / "run_pa.py"), "--model_path", weights, "--input_ids", "1,5", "--max_output_length", "3"]
    ended = subprocess.run([*command, *argv], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("Answer[0]: ")


@pytest.mark.full
@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
@pytest.mark.parametrize("order", [["-trust_remote_code", 0], [0, "--trust_remote_code"]])
def test_script_at_every_size(root, tmp_path, demo, answer, ranks, order):
    link = tmp_path / "demo weights"
    link.symlink_to(demo)
    status, out, err = run_script(root, tmp_path, *[word or str(link) for word in order], ranks=ranks)
    assert status == 0, err
    assert out.startswith(f"Answer[0]: {answer}\n")
