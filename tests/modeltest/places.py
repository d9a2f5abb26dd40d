"""Where data is looked for and results go."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modeltest.command.cases import Options, Run

HOME = Path(__file__).resolve().parent
DEVICE_WORDS = {"npu": "NPU", "cuda": "GPU", "cpu": "CPU"}


def in_checkout() -> bool:
    """Whether this is a source tree, with run.sh, and not an installed package."""
    return (HOME / "run.sh").is_file()


def beside() -> Path:
    """The folder of run.sh; the working folder where the package is installed without it."""
    return HOME if in_checkout() else Path.cwd()


def outputs(options: Options) -> Path:
    """--output_dir, else `outputs` beside run.sh."""
    return beside() / "outputs" if options.output_dir is None else options.output_dir


def folder(kind: str, facts: Mapping[str, Any], run: Run, options: Options) -> Path:
    """The folder of a run's files, as MindIE has it. kind: results, data or debug. facts: of the environment."""
    test = "performance_test" if run.is_performance else "precision_test"
    method, device = facts["quantization"], DEVICE_WORDS[facts["device"]["type"]]
    cache = None if options.kv_dtype == "auto" else f"kv_{options.kv_dtype}"
    storage = "_".join(filter(None, (run.dtype, method, cache)))
    return outputs(options) / kind / device / test / run.mode / storage / run.model


def data_folder(options: Options, name: str) -> Path:
    """Where the files of the set `name` are: --data_dir itself, else data/<name in lower case> beside run.sh."""
    return beside() / "data" / name.lower() if options.data_dir is None else options.data_dir
