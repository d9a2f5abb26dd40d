"""`run_pa.py --print_graph` and `atb-models graph`, from outside."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from atb_models import cli
from atb_models.launcher import look_graph
from atb_models.launcher.subject import Subject
from atb_models.limits import Limits
from atb_models.models.config_reader import load_model_config

pytestmark = pytest.mark.usefixtures("clean_environ")


def run_pa(root: Path, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(root / "run_pa.py"), *words],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "20", **environ},
    )


def graph(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    status = cli.main(["graph", "--device", "cpu", *words])
    out, err = capsys.readouterr()
    return status, out, err


def calls(out: str) -> list[dict[str, int]]:
    """The calls of each operation that the totals of each step name."""
    totals = re.findall(r"^calls: (.*?)\ntotal: ", out, re.MULTILINE | re.DOTALL)
    return [{op: int(times) for op, times in re.findall(r"(\w+) (\d+)", total)} for total in totals]


def test_demo_on_eight_ranks(root: Path, tmp_path: Path) -> None:
    drawn = tmp_path / "new" / "g.svg"
    ended = run_pa(root, "--print_graph", "--tp", "8", "--device", "cpu", "--svg", str(drawn))
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("graph of embedded checkpoint, fp16, rank 0 of 8\n")
    assert [(step["AllReduce"], step["AllGather"]) for step in calls(ended.stdout)] == [(8, 1)] * 2
    assert "layers.1-2 x 2" in ended.stdout and "layers.1-3 x 3" in ended.stdout and str(drawn) in ended.stderr
    assert ElementTree.parse(drawn).getroot().tag.endswith("svg")
    assert "warning: outside" not in ended.stdout


def test_sixteen_billion_parameters_on_eight_ranks(capsys: pytest.CaptureFixture[str], shared: Path) -> None:
    status, out, err = graph(capsys, "--tp", "8", "--model_path", str(shared / "headers" / "deepseek-moe-16b-base"))
    assert status == 0, err
    assert out.count("AllReduce 56") == out.count("AllGather 1") == 2
    assert [out.count(layers) for layers in ("layers.1-26 x 26", "layers.1-27 x 27")] == [1, 1]  # prefill, decode
    longest = max(re.findall("^ *[0-9]+ .*", out, re.MULTILINE), key=len)
    assert len(longest) <= 140


def test_one_rank_sends_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = graph(capsys, "--tp", "1")
    assert status == 0 and "AllReduce" not in out and "AllGather" not in out and len(calls(out)) == 2
    assert re.search(r"^decode: 1 token of 1 sequence, KV 1034$", out, re.MULTILINE)


def test_json_is_the_graphs(capsys: pytest.CaptureFixture[str], demo: Path) -> None:
    status, out, _ = graph(capsys, "--tp", "2", "--format", "json", "--model_path", str(demo), "--max_batch_size", "3")
    value = json.loads(out)
    assert status == 0 and value["model"] == "embedded checkpoint"
    subject = demo_subject(demo, Limits(3, 2048, 8192, 128), tp=2)
    for name, traced in look_graph.trace_steps(subject, 20).items():
        assert value[name] == traced.to_json()
    assert list(value) == ["model", "prefill", "decode"]


def demo_subject(demo: Path, limits: Limits, input_length: int = 1024, tp: int = 1) -> Subject:
    return Subject(load_model_config(demo, log=False), str(demo), "fp16", tp, "cpu", limits, input_length)


def test_steps_keep_within_the_limits(demo: Path) -> None:
    subject = demo_subject(demo, Limits(3, 2048, 8192, 128))
    assert look_graph.step_lengths(subject, 21) == {
        "prefill": ([1024] * 2, [1024] * 2),  # of three prompts two fit
        "decode": ([1] * 3, [1035] * 3),
    }
    assert look_graph.step_lengths(replace(subject, input_length=3000), 20)["prefill"] == ([2048], [2048])
    short = replace(subject, limits=Limits(1, 2048, 1030, 128))
    assert look_graph.step_lengths(short, 20)["decode"] == ([1], [1030])


def test_dot_is_of_both_steps(capsys: pytest.CaptureFixture[str]) -> None:
    status, folded, _ = graph(capsys, "--format", "dot")
    assert status == 0 and '"cluster prefill"' in folded and '"cluster decode"' in folded
    _, whole, _ = graph(capsys, "--format", "dot", "--all_layers")
    assert '"layers.1-3 (x 3)"' in folded and '"layers.3"' in whole


def test_all_layers_lists_every_node(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = graph(capsys, "--all_layers")
    rows = [int(number) for number in re.findall(r"^ *(\d+) [A-Z]", out, re.MULTILINE)]
    assert rows == [row for step in calls(out) for row in range(sum(step.values()))]


def test_torchruns_other_ranks_say_nothing(root: Path) -> None:
    ended = run_pa(root, "--print_graph", "--device", "cpu", RANK="1", WORLD_SIZE="2")
    assert (ended.returncode, ended.stdout) == (0, "")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--svg", "{file}"], "--svg: {file} is a folder; name a file"),
        (["--svg", "{file}/plain/g.svg"], "--svg: {file}/plain is no folder, so nothing can be written"),
        (["--tp", "9"], "9 ranks cannot share 8 attention heads"),
        (["--plan"], "`atb-models graph` is --print_graph and takes no --plan"),
        (["--chip", "H200"], "--chip goes with --plan or --profile only"),
        (["--foo"], "unknown flag --foo"),
    ],
)
def test_mistake_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, words: list[str], message: str
) -> None:
    (tmp_path / "plain").touch()
    status, out, err = graph(capsys, *(word.format(file=tmp_path) for word in words))
    assert (status, out) == (2, "") and message.format(file=tmp_path) in err and err.count("\n") == 1


def test_file_is_refused_before_the_tracing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(look_graph, "trace_steps", None)
    assert graph(capsys, "--svg", str(tmp_path))[0] == 2


def test_drawing_needs_the_graph(root: Path) -> None:
    ended = run_pa(root, "--svg", "g.svg")
    assert ended.returncode == 2 and "--svg goes with --print_graph only" in ended.stderr


@pytest.mark.parametrize("command", ["graph", "plan"])
def test_help_is_of_the_command(capsys: pytest.CaptureFixture[str], command: str) -> None:
    assert cli.main([command, "--tp", "2", "--help"]) == 0
    out = capsys.readouterr().out
    assert f"usage: atb-models {command} " in out and "--max_batch_size" in out and "\nmodel:\n" in out
    own, other = ("--chips_file", "--svg") if command == "plan" else ("--svg", "--chips_file")
    assert own in out and other not in out
    hidden = (
        "[--print_graph]",
        "[--plan]",
        "[--profile]",
        "--top_k",
        "--input_texts",
        "--dp",
        "decoding",
        "input:",
        "refused",
    )
    assert not [flag for flag in hidden if flag in out]
