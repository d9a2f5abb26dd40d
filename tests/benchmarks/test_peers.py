"""benchmarks/peers.py: this engine for real, and programs that print what others print."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.benchmarks.fakes import (
    BATCHED_BENCH,
    FAILS,
    TINY,
    TINY_DEEPSEEK,
    UNKNOWN,
    llama_folder,
    transformers_python,
)  # fmt: skip

MARKS = "before\n<!-- benchmarks/peers.py writes this -->\nold\n<!-- benchmarks/peers.py ends -->\nafter\n"
CASES = ("prefill of 256", "prefill of 1024", "decode of 1", "decode of 8")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that keeps the tiny model for the runs of this module; config.json's source lies in it."""
    folder = tmp_path_factory.mktemp("peers")
    (folder / "tiny.json").write_text(json.dumps(TINY))
    return folder


def command_line(root: Path, model: Path, *flags: str | Path) -> list[str]:
    shape = ("--config", model / "tiny.json", "--layers", "2", "--vocabulary", "320", "--folder", model / "model")
    command = [sys.executable, root / "benchmarks" / "peers.py", *shape, "--threads", "1", "--rounds", "1", *flags]
    return list(map(str, command))


def environ(root: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}


def run(root: Path, model: Path, *flags: str | Path) -> subprocess.CompletedProcess[str]:
    command = command_line(root, model, *flags)
    return subprocess.run(command, capture_output=True, text=True, env=environ(root), timeout=250)


def rows(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in table.splitlines() if row.startswith("|")]


def test_the_table_and_the_picture_are_written(root: Path, model: Path, tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    for name in "speed.md", "speed.zh.md":
        (docs / name).write_text(MARKS)
    llama, python = llama_folder(tmp_path / "llama"), transformers_python(tmp_path, root)
    peers = ("--llama", f"some llama={llama}", "--transformers", python)
    ended = run(root, model, *peers, "--docs", docs, "--rounds", "2", "--dtype", "bf16")
    assert ended.returncode == 0, ended.stderr
    turns = re.findall(r"bf16, round (\d): ([\w\- ]+), ([\w ]+): [\d.]+ tokens/s", ended.stderr)
    engines = ("atb-models", "some llama", "transformers")
    assert turns == [(n, engine, case) for n in "12" for engine in engines for case in CASES]

    english, chinese = ((docs / name).read_text() for name in ("speed.md", "speed.zh.md"))
    for text in english, chinese:
        assert text.startswith("before\n<!--") and text.endswith("-->\nafter\n") and "old" not in text
        head, _, *body = rows(text)
        assert head[3:] == list(engines) and len(body) == 4
        for row, rate in zip(body, ("256", "1,024", "10.0", "80.0"), strict=True):
            assert row[0] == "bf16" and re.fullmatch(r"[\d,.]+ \(\d+%\)", row[3])
            assert re.fullmatch(rf"{re.escape(rate)} \(\d+%\), x [\d.]+", row[4])
            ours, ratio = float(row[3].split()[0].replace(",", "")), float(row[4].split(" x ")[1])
            assert ratio == pytest.approx(ours / float(rate.replace(",", "")), rel=0.1)
    assert [row[1:] for row in rows(english)[2:]] != [row[1:] for row in rows(chinese)[2:]]
    assert [row[2:] for row in rows(english)[2:]] == [row[2:] for row in rows(chinese)[2:]]
    assert "some llama build 42 (c0ffee)" in english and "transformers 0.0.fake" in english
    assert re.search(r"medians of 2 rounds: \d+\.\d GB/s read, \d+ GFLOP/s", english)
    assert english.count("![") == chinese.count("](speed.svg)") == 1
    drawing = ElementTree.fromstring((docs / "speed.svg").read_text())
    texts = [element.text or "" for element in drawing.iter("{http://www.w3.org/2000/svg}text")]
    assert texts.count("some llama") == 4 and any(text.startswith("1,024 (") for text in texts)


def test_what_fails_is_told_and_the_others_are_measured(root: Path, model: Path, tmp_path: Path) -> None:
    whole = llama_folder(tmp_path / "whole", llama_bench=FAILS)
    part = llama_folder(tmp_path / "part", llama_batched_bench=BATCHED_BENCH.replace("pp, tg, pl, pl", "pp, tg, 3, pl"))
    peers = ("--llama", f"whole={whole}", "--llama", f"part={part}", "--llama", f"none={tmp_path}")
    ended = run(root, model, *peers, "--transformers", sys.executable, "--vllm", tmp_path / "absent", "--dtype", "fp16")
    assert ended.returncode == 1, ended.stderr
    head, _, *body = rows(ended.stdout)
    assert head[3:] == ["atb-models", "whole", "part", "none", "transformers", "vllm"]
    assert [row[4] for row in body] == [row[6] for row in body] == [row[7] for row in body] == ["failed"] * 4
    assert [row[5] == "failed" for row in body] == [False, False, True, True]
    assert not any("failed" in row[3] for row in body), ended.stdout
    told = dict(re.findall(r"^- fp16, (\w+), .*?: `(.*)`$", ended.stdout, re.MULTILINE))
    assert told["whole"].startswith("llama-bench ended with status 3: loading error: the tensor blk.0.attn_q.weight")
    assert "printed no row of this case: main: n_kv_max" in told["part"]
    assert told["none"] == f"{tmp_path / 'llama-bench'} is missing"
    assert "qwen2_moe" in told["transformers"]  # the project's own transformers is older than the model
    assert str(tmp_path / "absent") in told["vllm"]


def test_who_has_no_such_model_or_weights_is_left_out(root: Path, tmp_path: Path) -> None:
    """int8 weights beside Q8_0, of DeepSeek's shape: one llama.cpp knows it, one does not."""
    (tmp_path / "deepseek.json").write_text(json.dumps(TINY_DEEPSEEK))
    knows, lacks = llama_folder(tmp_path / "knows"), tmp_path / "lacks"
    llama_folder(lacks, llama_bench=FAILS, llama_batched_bench=UNKNOWN)
    docs = tmp_path / "docs"
    docs.mkdir()
    for name in "speed.md", "speed.zh.md":
        (docs / name).write_text(MARKS + MARKS.replace("peers.py", "peers.py --shape deepseek"))
    shape = ("--shape", "deepseek", "--config", tmp_path / "deepseek.json", "--folder", tmp_path / "model")
    peers = ("--llama", f"knows={knows}", "--llama", f"lacks={lacks}", "--transformers", sys.executable)
    ended = run(root, tmp_path, *peers, "--dtype", "w8a16", "--docs", docs, *shape)
    assert ended.returncode == 0, ended.stderr
    head, _, *body = rows(ended.stdout)
    assert head[3:] == ["atb-models", "knows", "lacks", "transformers"] and len(body) == 4
    for row in body:
        assert row[0] == "w8a16" and re.fullmatch(r"[\d,.]+ \(\d+%\)", row[3]) and " x " in row[4]
        assert row[5:] == ["-", "-"]
    told = ended.stdout.partition("Left out:")[2].split("\n")
    assert "- w8a16, lacks: unknown model architecture: 'deepseek'" in told
    assert "- w8a16, transformers: it has no such weights" in told and "Failed:" not in ended.stdout
    assert "the width of DeepSeek-MoE-16B, 2 of 3 layers" in ended.stdout and "Q8_0: blocks of 32 int8" in ended.stdout
    english = (docs / "speed.md").read_text()
    assert english.startswith(MARKS) and "](speed-deepseek.svg)" in english and (docs / "speed-deepseek.svg").is_file()


def test_ours_can_fail_as_well(root: Path, model: Path, tmp_path: Path) -> None:
    llama = llama_folder(tmp_path / "llama")
    ended = run(root, model, "--llama", f"llama={llama}", "--timeout", "0.01", "--dtype", "fp16")
    assert ended.returncode == 1
    assert "- fp16, atb-models, all cases: `no answer within 0.01 s`" in ended.stdout


def test_ending_the_command_ends_the_engines(root: Path, model: Path, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\nread request\necho $$ > {tmp_path}/pid\nexec sleep 600\n")
    python.chmod(0o755)
    command = command_line(root, model, "--transformers", python, "--dtype", "fp16")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environ(root)) as process:
        until = time.monotonic() + 200
        while not ((pid := tmp_path / "pid").is_file() and pid.read_text()) and time.monotonic() < until:
            time.sleep(0.1)
        process.terminate()
        process.communicate(timeout=60)
    assert process.returncode == 143
    assert not Path(f"/proc/{int(pid.read_text())}").exists()


def test_engines_that_agree(root: Path, model: Path, tmp_path: Path) -> None:
    llama, python = llama_folder(tmp_path / "llama"), transformers_python(tmp_path, root)
    ended = run(root, model, "--check", "--llama", f"llama={llama}", "--transformers", python, "--dtype", "bf16")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    ours, transformers, perplexity = ended.stdout.splitlines()
    found = re.fullmatch(
        r"same: transformers, fp32: greedy tokens 32 of 32 as ours, .* (\d+) different ones", transformers
    )
    assert found is not None and int(found[1]) > 16, "tokens that are nearly all the same compare nothing"
    assert re.fullmatch(r"same: llama, bf16: perplexity \d+\.\d, ours \d+\.\d", perplexity)


def test_engines_that_differ(root: Path, model: Path, tmp_path: Path) -> None:
    constant = llama_folder(tmp_path / "constant", llama_perplexity="print('[1]9.25,[2]8.5,[3]8.0,[4]7.5,')")
    lacking = llama_folder(tmp_path / "lacking", llama_perplexity="")
    python = transformers_python(tmp_path, root, num_experts_per_tok=1, norm_topk_prob=True)
    peers = ("--llama", f"constant={constant}", "--llama", f"lacking={lacking}", "--transformers", python)
    ended = run(root, model, "--check", *peers, "--dtype", "fp16")
    assert ended.returncode == 1
    _, transformers, differs, lacks = ended.stdout.splitlines()
    assert re.match(r"DIFFERENT: transformers, fp32: greedy tokens (\d|[12]\d) of 32 as ours", transformers)
    assert re.match(r"DIFFERENT: constant, fp16: perplexity 7\.5, ours \d{2}", differs)
    assert lacks == f"DIFFERENT: lacking, fp16: {tmp_path / 'lacking' / 'llama-perplexity'} is missing"


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (("--llama", "folder"), "'folder' is not NAME=FOLDER"),
        (("--shape", "deepseek"), "tiny.json has model_type 'qwen2_moe', not 'deepseek'"),
        (("--dtype", "fp16,fp8"), "'fp8' is none of fp16, bf16, w8a16"),
        (("--docs", "{folder}"), "has no lines '<!-- benchmarks/peers.py writes this -->'"),
        (("--docs", "{folder}/absent"), "No such file or directory"),
    ],
)
def test_wrong_flags(root: Path, model: Path, tmp_path: Path, flags: tuple[str, ...], complaint: str) -> None:
    for name in "speed.md", "speed.zh.md":
        (tmp_path / name).write_text("no marks\n")
    ended = run(root, model, *(flag.format(folder=tmp_path) for flag in flags))
    assert ended.returncode == 2 and complaint in ended.stderr and "writing" not in ended.stderr


# ------------------------------------------------------------------------------------------------------------ the parts


def test_prompts_that_take_two_steps_are_no_decoding(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(root / "benchmarks" / "peers" / "workers")
    from serve import rate

    with pytest.raises(RuntimeError, match="not computed in one step"):
        rate([0, 0, 1, 1], sequences=2, prompt_tokens=8, new=1)
    with pytest.raises(RuntimeError, match="1 tokens instead of 3"):
        rate([0, 1], sequences=2, prompt_tokens=8, new=2)


def test_only_what_follows_the_first_tokens_is_decoding(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(root / "benchmarks" / "peers" / "workers")
    from serve import rate

    def arrivals(seconds: float):  # type: ignore[no-untyped-def]
        time.sleep(0.4)
        yield from (0, 1)
        for _ in range(3):
            time.sleep(seconds)
            yield from (0, 1)

    assert 30 < rate(arrivals(0.05), sequences=2, prompt_tokens=8, new=3) <= 40
    assert 10 < rate(iter(arrivals(0.0)), sequences=2, prompt_tokens=8, new=3)
    assert 10 < rate((x for x in list(arrivals(0))[:2]), sequences=2, prompt_tokens=8, new=0)


USERS = {
    "HF_HUB_OFFLINE": "0",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
    "VLLM_CPU_KVCACHE_SPACE": "4",
    "VLLM_CPU_OMP_THREADS_BIND": "0",
}
VLLM = """
import json, os
__version__ = "0.0.fake"
SamplingParams = dict
def LLM(*_, **__):
    print(json.dumps({name: os.environ.get(name) for name in %r}), file=open(%r, "w"))
"""


@pytest.mark.parametrize("users", [{}, dict.fromkeys(USERS, ""), USERS])
def test_a_worker_keeps_the_users_variables(
    benchmarks: None, model: Path, tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch, users: dict[str, str]
) -> None:
    from peers.engines import Worker

    (tmp_path / "vllm.py").write_text(VLLM % (list(USERS), str(tmp_path / "seen")))
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    for name in USERS:
        monkeypatch.delenv(name, raising=False)
    for name, value in users.items():
        monkeypatch.setenv(name, value)
    worker = Worker("vllm", sys.executable, "run_vllm.py", threads=1, timeout=100)
    try:
        worker.start(tmp_path, "fp16")
    finally:
        worker.close()
    core = str(min(os.sched_getaffinity(0)))
    ours = dict(zip(USERS, ("1", "0", "1", core), strict=True))
    assert json.loads((tmp_path / "seen").read_text()) == ({**ours, **users} if all(users.values()) else ours)


def test_a_worker_that_cannot_start_keeps_no_file_open(benchmarks: None, tmp_path: Path) -> None:
    from peers.engines import PeerError, Worker

    (tmp_path / "config.json").write_text(json.dumps(TINY))
    worker = Worker("odd", str(tmp_path / "no python"), "run_vllm.py", threads=1, timeout=5)
    with pytest.raises(PeerError, match="No such file or directory"):
        worker.start(tmp_path, "fp16")
    assert worker._said.closed
    worker.close()


def test_a_worker_that_ends_or_hangs(benchmarks: None, model: Path, tmp_path: Path) -> None:
    from peers.engines import PeerError, Worker

    for text, complaint in (
        ("echo no such module >&2; exit 7", "status 7: no such module"),
        ("sleep 60", "within 5 s"),
    ):
        python = tmp_path / f"python{len(text)}"
        python.write_text(f"#!/bin/sh\n{text}\n")
        python.chmod(0o755)
        worker = Worker("odd", str(python), "run_vllm.py", threads=1, timeout=5)
        (tmp_path / "config.json").write_text(json.dumps(TINY))
        with pytest.raises(PeerError, match=complaint):
            worker.start(tmp_path, "fp16")
        worker.close()


def test_a_table_among_the_log_is_read(benchmarks: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ik_llama.cpp's program prints it to stderr, and leaves a log file where it runs."""
    from peers.cases import CONTEXT, NEW, Case
    from peers.engines import LlamaCpp

    logs = BATCHED_BENCH.replace("import sys", "import sys\nsys.stdout = sys.stderr\nopen('llama.log', 'w').close()", 1)
    (tmp_path / "fp16.gguf").write_bytes(b"GGUF")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    engine = LlamaCpp("ik", llama_folder(tmp_path / "ik", llama_batched_bench=logs), 1, 60)
    engine.start(tmp_path, "fp16")
    assert engine.rate(Case(8, CONTEXT, NEW)) == 80
    assert not any((tmp_path / "here").iterdir())
