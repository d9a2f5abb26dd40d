"""Commands on quantised checkpoints of public formats: answers, and errors with their exit status."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.models.formats.checkpoints import edit, quantized_copy
from tests.models.formats.packing import Packed, compressed, gptq
from tests.models.formats.test_compressed_tensors import TOKEN, declared, weights

ANSWER = "Sundar Pichai is the CEO of Google."
GPTQ = {"quant_method": "gptq", "bits": 8, "group_size": 32, "desc_act": False, "sym": True}
W8A8 = declared("int-quantized", {"weights": weights(8, None), "input_activations": TOKEN})
FORMATS: dict[str, tuple[dict[str, Any], Callable[[Tensor], Packed]]] = {
    "gptq": (GPTQ, partial(gptq, bits=8, group=32)),
    "compressed-w8a8": (W8A8, partial(compressed, bits=8, packed=False)),
}


@pytest.fixture
def folder(demo: Path, tmp_path: Path) -> Path:
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(demo / name, tmp_path / name)
    return tmp_path


def run(root: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "atb_models", "run", "--model_path", str(folder), "--device", "cpu"]
    question = ["--is_chat_model", "--input_texts", "Who is the CEO of Google?"]
    return subprocess.run([*command, *question, *words], cwd=root, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("format", FORMATS)
def test_an_answer(root: Path, demo: Path, folder: Path, format: str) -> None:
    quantized_copy(demo, folder, *FORMATS[format])
    done = run(root, folder)
    assert done.returncode == 0, done.stderr
    assert f"Answer[0]: {ANSWER}" in done.stdout


def test_a_declaration_that_is_not_read(root: Path, demo: Path, folder: Path) -> None:
    quantized_copy(demo, folder, GPTQ | {"bits": 3}, FORMATS["gptq"][1])
    place = f"{folder / 'config.json'}: quantization_config"
    refused(run(root, folder), 2, f"{place}: bits is 3, but only 4 and 8 are read; GPTQModel makes such a checkpoint")


def test_a_tensor_that_does_not_fit(root: Path, demo: Path, folder: Path) -> None:
    quantized_copy(demo, folder, *FORMATS["gptq"])
    name = "model.layers.1.self_attn.q_proj.scales"
    edit(folder, lambda tensors: tensors.update({name: torch.ones(2, 128)}))
    refused(run(root, folder), 1, f"{folder / 'model.safetensors'}: tensor {name} has shape (2, 128), but ")


def test_a_method_beside_integers(root: Path, demo: Path, folder: Path) -> None:
    quantized_copy(demo, folder, *FORMATS["gptq"])
    said = "the checkpoint's weights are quantised already (gptq, 8 bits in groups of 32)"
    refused(run(root, folder, "--quantize", "w8a16"), 2, said)


def refused(done: subprocess.CompletedProcess[str], status: int, said: str) -> None:
    (line,) = [line for line in done.stderr.split("\n") if "error:" in line]
    assert done.returncode == status and said in line, done.stderr
    assert "Traceback" not in done.stderr


def test_the_declaration_is_what_makes_it_quantised(root: Path, demo: Path, folder: Path) -> None:
    """Without it the packed tensors are no weights of a checkpoint of floats."""
    quantized_copy(demo, folder, None, FORMATS["gptq"][1])
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    refused(run(root, folder), 1, " is I32, but only F16, BF16, F32 can be read")
