"""Command line over environment: each pair of docs/environment.md, shown where the two meet."""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from atb_models.clients.chat import build_parser as chat_parser
from atb_models.clients.flags import server_of
from atb_models.command import engine_options
from atb_models.errors import ConfigError
from atb_models.launcher import args as launcher_args
from atb_models.launcher.devices import choose_devices
from atb_models.launcher.prepare import asked_engine, prepare
from atb_models.machine import determinism
from atb_models.server import args as server_args
from modeltest.command import checks, nodes
from modeltest.command.cases import Nodes, Run
from tests.documents.reading import chinese, tables
from tests.tiny import write_checkpoint

DOCUMENT = "docs/environment.md"
Check = Callable[[Path, pytest.MonkeyPatch], None]
CHECKS: dict[tuple[str, ...], Check] = {}


def pair(*names: str) -> Callable[[Check], Check]:
    """For the check of a row: the names in code of its first two columns, in their order."""

    def enter(check: Check) -> Check:
        CHECKS[names] = check
        return check

    return enter


def parse(*words: str) -> Any:
    return launcher_args.parse_args(words)


@pair("--model_path", "ATB_LAUNCHER_MODEL_PATH")
def _model_path(folder: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("ATB_LAUNCHER_MODEL_PATH", "/elsewhere")
    for words in (["--model_path", str(folder)], [str(folder)]):
        assert asked_engine(parse(*words))[0].model_path == str(folder)
    patch.setenv("ATB_LAUNCHER_MODEL_PATH", str(folder))
    assert asked_engine(parse())[0].model_path == str(folder)


@pair("--profile", "ATB_PROFILING_ENABLE", "--plan", "--print_graph", "--graph_capture")
def _profile(_: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("ATB_PROFILING_ENABLE", "0")
    assert parse("--profile").profile
    patch.setenv("ATB_PROFILING_ENABLE", "1")
    assert parse().profile
    for flag in ("--plan", "--print_graph", "--graph_capture"):
        assert not parse(flag).profile


@pair("--prefix_cache", "ATB_LLM_BENCHMARK_ENABLE")
def _prefix_cache(_: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("ATB_LLM_BENCHMARK_ENABLE", "1")
    assert asked_engine(parse("--prefix_cache", "on"))[0].prefix_cache
    assert not asked_engine(parse())[0].prefix_cache


@pair("--use_generation_config", "REMOVE_GENERATION_CONFIG_DICT")
def _generation(folder: Path, patch: pytest.MonkeyPatch) -> None:
    (folder / "generation_config.json").write_text(json.dumps({"do_sample": True, "temperature": 0.3, "top_k": 7}))
    patch.setenv("REMOVE_GENERATION_CONFIG_DICT", "1")
    params = prepare(parse(str(folder), "--use_generation_config", "--input_ids", "1")).params
    assert (params.temperature, params.top_k, params.max_tokens) == (0.3, 7, 20)
    assert prepare(parse(str(folder), "--input_ids", "1")).params.temperature == 0


@pair("--api_key", "chat", "bench serve", "batch", "ATB_API_KEY")
def _clients_key(_: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("ATB_API_KEY", "first,second")
    told = [
        server_of(chat_parser().parse_args(["--url", "http://h", *words])).key
        for words in ([], ["--api_key", "mine"], ["--api_key", ""])
    ]
    assert told == ["first", "mine", None]


@pair("--api_key", "--api_key_file", "serve", "ATB_API_KEY")
def _servers_keys(folder: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("ATB_API_KEY", "c")
    (folder / "keys").write_text("b\n")
    key, file = ["--api_key", "a"], ["--api_key_file", str(folder / "keys")]
    for words, keys in (([], "c"), (key, "a"), (file, "b"), ([*key, *file], "ab")):
        assert server_args.access(server_args.parse_args(words)).keys == tuple(keys)
    with pytest.raises(ConfigError, match="--api_key is empty"):
        server_args.access(server_args.parse_args(["--api_key", ""]))


@pair("--tp", "ASCEND_RT_VISIBLE_DEVICES", "launch")
def _devices(_: Path, patch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="--tp 2 contradicts ASCEND_RT_VISIBLE_DEVICES=0,1,5, which names 3 devices"):
        choose_devices((0, 1, 5), None, 2)


@pair("--tp", "WORLD_SIZE")
def _world(_: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ConfigError, match="--tp 2 does not match torchrun's WORLD_SIZE 4"):
        engine_options.ranks(2)


@pair("--deterministic", "HCCL_DETERMINISTIC")
def _deterministic(_: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("HCCL_DETERMINISTIC", "false")
    with pytest.raises(ConfigError, match="HCCL_DETERMINISTIC=true, the environment has false"):
        determinism.check("npu")


def words_of_script(folder: Path, *words: str, **variables: str) -> list[str]:
    """The arguments that a script gives to run_pa."""
    python = folder / "python"
    python.write_text('#!/bin/sh\nshift; printf "%s\\0" "$@"\n')
    python.chmod(0o755)
    script = Path(__file__).parents[2] / "examples/models/deepseek/run_pa_deepseek_moe.sh"
    environ = {**os.environ, "PYTHON": str(python), **variables}
    ended = subprocess.run(["bash", str(script), *words], env=environ, capture_output=True, text=True, check=True)
    return ended.stdout.split("\0")[:-1]


def script_pair(flag: str, variable: str, read: Callable[[Any], object]) -> None:
    @pair(flag, variable)
    def check(folder: Path, patch: pytest.MonkeyPatch) -> None:
        for words, expected in (((), "7"), ((flag, "8"), "8")):
            args = parse(*words_of_script(folder, *words, **{variable: "7"}))
            assert str(read(args)) == expected


script_pair("--input_texts", "input_text", lambda args: args.input_texts[0])
script_pair("--max_output_length", "max_output_length", lambda args: args.max_output_length)
script_pair("--system_prompt", "system_prompt", lambda args: args.system_prompt)


def started(folder: Path, patch: pytest.MonkeyPatch) -> list[str]:
    """The flags of a torchrun for the second of two hosts; the environment is as its ranks get it."""
    seen: list[Any] = []
    patch.setattr("torch.distributed.run.run", seen.append)
    table = folder / "table.json"
    table.write_text("{}")
    patch.setenv("RANK_TABLE_FILE", "/elsewhere")
    patch.setenv("MASTER_ADDR", "10.0.0.9")
    for name in ("ATB_LAUNCHER_DEFAULTS", "OMP_NUM_THREADS", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"):
        patch.setenv(name, "3")
    assert nodes.run_ranks(Nodes(table, 4, 2, 2, "10.0.0.1"), []) == 0
    return [seen[0].master_addr, os.environ["RANK_TABLE_FILE"]]


@pair("ASCEND_RT_VISIBLE_DEVICES", "WORLD_SIZE")
def _chips(folder: Path, patch: pytest.MonkeyPatch) -> None:
    run = Run("fp16", "full_BoolQ", "deepseek", folder, 2, ((1,),))
    patch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ConfigError, match="chip_num 2 does not match torchrun's WORLD_SIZE 4"):
        checks.check_devices(run)
    patch.delenv("WORLD_SIZE")
    patch.setenv("ASCEND_RT_VISIBLE_DEVICES", "0,1,5")
    with pytest.raises(ConfigError, match="chip_num 2 contradicts ASCEND_RT_VISIBLE_DEVICES=0,1,5, which names 3"):
        checks.check_devices(run)


@pair("RANK_TABLE_FILE")
def _rank_table(folder: Path, patch: pytest.MonkeyPatch) -> None:
    assert started(folder, patch)[1] == str(folder / "table.json")


@pair("MASTER_ADDR")
def _master(folder: Path, patch: pytest.MonkeyPatch) -> None:
    assert started(folder, patch)[0] == "10.0.0.1"


@pair("--threads", "benchmarks/peers.py", "tools/demo/train.py", "OMP_NUM_THREADS")
def _threads_or_all_cores(_: Path, patch: pytest.MonkeyPatch) -> None:
    from tools.demo import train

    patch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    patch.delitem(sys.modules, "native", raising=False)  # the tests have a package of this name
    peers = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks/peers.py"))
    patch.delitem(sys.modules, "native", raising=False)
    cores = len(os.sched_getaffinity(0))
    for variable, words, expected in (("3", [], 3), ("3", ["--threads", "2"], 2), ("", [], cores)):
        patch.setenv("OMP_NUM_THREADS", variable)
        assert peers["argument_parser"]().parse_args(words).threads == expected
        patch.setattr(sys, "argv", ["train.py", "--out", "x", *words])
        assert train.arguments().threads == (expected if variable else os.cpu_count())


@pair("--threads", "benchmarks/native.py", "OMP_NUM_THREADS")
def _threads(_: Path, patch: pytest.MonkeyPatch) -> None:
    class Seen(Exception):
        """The number of threads that the benchmark asked for."""

    def stop(number: int) -> None:
        raise Seen(number)

    benchmark = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks/native.py"))
    patch.setattr("torch.set_num_threads", stop)
    for variable, words, expected in (("3", [], 3), ("3", ["--threads", "2"], 2), ("", [], 1)):
        patch.setenv("OMP_NUM_THREADS", variable)
        patch.setattr(sys, "argv", ["native.py", *words])
        with pytest.raises(Seen) as seen:
            benchmark["main"]()
        assert seen.value.args == (expected,)


def documented(document: str) -> list[tuple[str, ...]]:
    """The names in code of the first two columns of the table of pairs; without links, which lead elsewhere."""
    (table,) = [table for table in tables(document) if len(table[0]) == 3 and table[2][0].startswith("`--model_path`")]
    return [names_in(row[0], row[1], row[2]) for row in table[2:]]


def names_in(*cells: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(re.findall("`([^`]+)`", " ".join(cells))))


@pytest.mark.parametrize("document", [DOCUMENT, chinese(DOCUMENT)])
def test_the_documents_have_the_pairs_that_are_tried(document: str) -> None:
    assert [sorted(names) for names in documented(document)] == [sorted(names) for names in CHECKS]


@pytest.mark.parametrize("names", CHECKS, ids="/".join)
def test_pair(names: Sequence[str], clean_environ: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint(tmp_path)
    CHECKS[tuple(names)](tmp_path, monkeypatch)


@pytest.mark.parametrize("command", [["run"], ["launch", "--tp", "2"], ["chat", "--max_tokens", "2"]])
def test_model_path_from_outside(root: Path, demo: Path, clean_environ: None, command: list[str]) -> None:
    """Ranks, which find the variable in their environment too, take the flag's checkpoint."""
    length = [] if command[0] == "chat" else ["--max_output_length", "2", "--input_texts", "Who"]
    environ = {**os.environ, "PYTHONPATH": str(root), "ATB_LAUNCHER_MODEL_PATH": "/elsewhere"}
    line = [sys.executable, "-m", "atb_models", *command, *length, "--device", "cpu"]
    run: dict[str, Any] = {"env": environ, "input": "Who\n", "capture_output": True, "text": True, "timeout": 200}
    ended = subprocess.run([*line, "--model_path", str(demo)], **run)
    assert ended.returncode == 0, ended.stderr
    ended = subprocess.run(line, **run)
    assert ended.returncode == 2
    assert "atb-models: error: ATB_LAUNCHER_MODEL_PATH: model_path /elsewhere is no folder" in ended.stderr


def test_a_profile_that_is_not_made_is_said(
    caplog: pytest.LogCaptureFixture, clean_environ: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from atb_models.launcher.profiling import Profiling

    monkeypatch.setenv("ATB_PROFILING_ENABLE", "1")
    Profiling(parse("--graph_capture"), "npu")
    assert "ATB_PROFILING_ENABLE=1 has no effect: --graph_capture launches a decode step as a whole" in caplog.text
