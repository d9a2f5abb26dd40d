"""Prompts far beyond 4,096 tokens: what the column "long sequence" of the matrix in docs/models.md stands for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from atb_models import LLM, SamplingParams
from tests.parity.plain import plain_logits
from tests.tiny import FAMILIES, write_checkpoint

CHUNK = 1024
LENGTHS = [9216, pytest.param(16384, marks=pytest.mark.full)]  # beyond every family's own positions but Qwen's
PLACES = (0, 1, 1023, 4095, 4096, 8191)  # and the last
# Qwen's own positions; XVERSE's 8,192 and DeepSeek's 4,096 stretched by linear interpolation.
REACH: dict[str, dict[str, Any]] = {
    "qwen": {"max_position_embeddings": 32768},
    "xverse": {"max_position_embeddings": 32768, "rope_scaling": {"type": "linear", "factor": 4.0}},
    "deepseek": {"max_position_embeddings": 16400, "rope_scaling": {"type": "linear", "factor": 4.0}},
}


def token_ids(length: int) -> list[int]:
    return torch.randint(3, 250, (length,), generator=torch.Generator().manual_seed(1)).tolist()


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("family", REACH)
def test_logits_in_chunks(family: str, length: int, tmp_path: Path) -> None:
    """Against the plain implementation, at places of one layer, which sees all that stands before them."""
    fields = {"num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 4, **REACH[family]}
    fields |= {"first_k_dense_replace": 0} if family == "deepseek" else {}
    tensors = write_checkpoint(tmp_path, family=family, **fields)
    prompt, places = token_ids(length), (*PLACES, length - 1)
    with LLM(tmp_path, dtype="fp32", device="cpu", max_prefill_tokens=CHUNK) as llm:
        (output,) = llm.generate([prompt], SamplingParams(max_tokens=2, temperature=0, ignore_eos=True))
        assert llm.metrics()["chunks"] == length // CHUNK
        ours = llm.prompt_logits(prompt)
    exact = plain_logits({**FAMILIES[family], **fields}, tensors, prompt, places)
    assert (ours[list(places)] - exact).abs().max() <= 2e-4
    assert output.token_ids[0] == exact[-1].argmax()


# Prints by how much the peak of the process grew from a prompt of one chunk to one of argv[2] tokens.
PROGRAM = """
import re, sys
from pathlib import Path
from atb_models import LLM, SamplingParams

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) << 10

length, chunk = int(sys.argv[2]), int(sys.argv[3])
two = SamplingParams(max_tokens=2, temperature=0, ignore_eos=True)
with LLM(sys.argv[1], dtype="fp32", device="cpu", max_batch_size=1, max_prefill_tokens=chunk) as llm:
    llm.generate([[5] * chunk], two)
    before = peak()
    llm.generate([[5] * length], two)
    print(peak() - before)
"""


@pytest.mark.parametrize("length", LENGTHS)
def test_memory_is_flat(root: Path, tmp_path: Path, length: int) -> None:
    """Beside the KV cache nothing grows with the square of the prompt: one head's scores are 324 MiB, or 1 GiB."""
    write_checkpoint(
        tmp_path, family="qwen", num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, **REACH["qwen"]
    )
    kv_cache = 2 * 2 * length * 64 * 4
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), str(length), str(CHUNK)]
    ended = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) < kv_cache + (96 << 20)
