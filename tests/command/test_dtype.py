"""The data type of a run: every command takes each of its names, and "auto"."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from atb_models import LLM, SamplingParams
from atb_models.clients.batch import build_parser as batch_parser
from atb_models.clients.chat import build_parser as chat_parser
from atb_models.command.parser import Parser
from atb_models.engine.config import EngineConfig
from atb_models.errors import ConfigError
from atb_models.launcher.args import build_parser as run_parser
from atb_models.launcher.args import graph_parser, plan_parser
from atb_models.models.dtypes import ALIASES
from atb_models.server.args import build_parser as serve_parser
from tests.server.running import running
from tests.tiny import write_checkpoint

SPELLINGS = {
    "fp16": "fp16", "float16": "fp16", "half": "fp16", "torch.float16": "fp16",
    "bf16": "bf16", "bfloat16": "bf16", "torch.bfloat16": "bf16",
    "fp32": "fp32", "float32": "fp32", "float": "fp32", "torch.float32": "fp32",
    "auto": "auto",
}  # fmt: skip
PARSERS: dict[str, Callable[[], Parser]] = {
    "run": run_parser,
    "serve": serve_parser,
    "chat": chat_parser,
    "batch": batch_parser,
    "plan": lambda: plan_parser("plan", None),
    "graph": lambda: graph_parser("graph", None),
}


def test_all_aliases_are_tried() -> None:
    assert set(ALIASES) <= set(SPELLINGS)


@pytest.mark.parametrize("command", PARSERS)
def test_every_command_takes_every_name(command: str) -> None:
    words = ["in", "out"] if command == "batch" else []
    for spelling, meant in SPELLINGS.items():
        assert PARSERS[command]().parse_args(["--dtype", spelling, *words]).dtype == meant
    for bad in ("int8", "float64", "", "FP16", "torch.", "torch.fp8"):
        with pytest.raises(ConfigError, match="argument --dtype: invalid choice: .*fp16.*bf16.*fp32.*auto"):
            PARSERS[command]().parse_args(["--dtype", bad, *words])


@pytest.mark.parametrize(("spelling", "meant"), SPELLINGS.items())
def test_the_engine_takes_every_name(spelling: str, meant: str) -> None:
    assert EngineConfig(dtype=spelling).dtype == meant


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32])
def test_the_engine_takes_torchs_types(kind: Any) -> None:
    config = EngineConfig(dtype=kind)
    assert config.dtype == ALIASES[str(kind).removeprefix("torch.")]
    assert EngineConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize("bad", ["int8", None, 16, torch.int8, "AUTO"])
def test_the_engine_refuses_others(bad: Any) -> None:
    with pytest.raises(ConfigError, match=f"^dtype must be one of fp16, bf16, fp32, auto, not {bad!r}$"):
        EngineConfig(dtype=bad)


@pytest.mark.parametrize(("declared", "computed"), [("bfloat16", "bf16"), ("float32", "fp32"), (None, "fp16")])
def test_auto_is_what_the_checkpoint_says(tmp_path: Path, declared: str | None, computed: str) -> None:
    write_checkpoint(tmp_path)
    told = json.loads((tmp_path / "config.json").read_text()) | {"torch_dtype": declared}
    (tmp_path / "config.json").write_text(json.dumps({name: value for name, value in told.items() if value}))
    params = SamplingParams(max_tokens=4, temperature=0, ignore_eos=True)
    answers = []
    for dtype in ("auto", computed):
        with LLM(tmp_path, dtype=dtype, device="cpu", max_seq_len=64) as llm:
            assert llm._runner.model_config.run_dtype(llm.config.dtype) == computed
            answers.append(llm.generate([[1, 2, 3]], params)[0].token_ids)
    assert answers[0] == answers[1]


def command(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "PYTHONPATH": str(root)}
    return subprocess.run(
        [sys.executable, "-m", "atb_models", *words], env=environ, capture_output=True, text=True, timeout=200
    )


def test_commands_from_outside(root: Path, clean_environ: None) -> None:
    """The embedded checkpoint declares float16."""
    length = ("--device", "cpu", "--max_output_length", "2", "--input_texts", "Who")
    for dtype in ("auto", "bfloat16"):
        assert (ended := command(root, "run", "--dtype", dtype, *length)).returncode == 0, ended.stderr
    assert command(root, "launch", "--dtype", "auto", "--tp", "2", *length).returncode == 0
    assert "fp16, 1 rank" in command(root, "plan", "--dtype", "auto").stdout
    assert "bf16, 1 rank" in command(root, "plan", "--dtype", "bfloat16").stdout
    ended = command(root, "serve", "--dtype", "int4")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "argument --dtype: invalid choice: 'int4'" in ended.stderr and "auto" in ended.stderr


@pytest.mark.parametrize(("dtype", "computed"), [("auto", "fp16"), ("float32", "fp32")])
def test_the_service_tells_the_type_it_computes_in(clean_environ: None, dtype: str, computed: str) -> None:
    with running("--device", "cpu", "--dtype", dtype, "--max_batch_size", "1") as server:
        assert server.json("/info")["model_dtype"] == computed
