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
from tests.tiny import FAMILIES, LATER, write_checkpoint
from tests.tiny_latent import LATENT, write_latent

CHUNK = 1024
FULL = pytest.mark.full
LENGTHS = [9216, pytest.param(16384, marks=FULL)]  # beyond the own positions of XVERSE, DeepSeek and OLMoE
PLACES = (0, 1, 1023, 4095, 4096, 8191)  # and the last
# Qwen's own positions; XVERSE's 8,192 and DeepSeek's 4,096 stretched by linear interpolation.
REACH: dict[str, dict[str, Any]] = {
    "qwen": {"max_position_embeddings": 32768},
    "xverse": {"max_position_embeddings": 32768, "rope_scaling": {"type": "linear", "factor": 4.0}},
    "deepseek": {"max_position_embeddings": 16400, "rope_scaling": {"type": "linear", "factor": 4.0}},
}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
REACH_LATER: dict[str, dict[str, Any]] = {
    "llama": {"max_position_embeddings": 131072, "rope_scaling": {"rope_type": "llama3", **LLAMA3}},
    **{family: {"max_position_embeddings": 32768} for family in ("mistral", "qwen2", "qwen3", "qwen3_moe", "mixtral")},
    "olmoe": {"max_position_embeddings": 16400, "rope_scaling": {"type": "linear", "factor": 4.0}},
}
REACH_LATENT: dict[str, dict[str, Any]] = {
    family: {
        "max_position_embeddings": 163840,
        "rope_scaling": config["rope_scaling"] | {"original_max_position_embeddings": 4096},
    }
    for family, config in LATENT.items()
}


def token_ids(length: int) -> list[int]:
    return torch.randint(3, 250, (length,), generator=torch.Generator().manual_seed(1)).tolist()


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize(
    "family", [*REACH, *(pytest.param(family, marks=FULL) for family in REACH_LATER | REACH_LATENT)]
)
def test_logits_in_chunks(family: str, length: int, tmp_path: Path) -> None:
    """Against the plain implementation, at places of one layer, which sees all that stands before them."""
    fields = {"num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 4}
    fields |= (REACH | REACH_LATER | REACH_LATENT)[family]
    fields |= {"first_k_dense_replace": 0} if family.startswith("deepseek") else {}
    if family in LATENT:
        tensors = write_latent(tmp_path, family, **fields)
    else:
        tensors = write_checkpoint(tmp_path, family=family, **fields)
    prompt, places = token_ids(length), (*PLACES, length - 1)
    with LLM(tmp_path, dtype="fp32", device="cpu", max_prefill_tokens=CHUNK) as llm:
        (output,) = llm.generate([prompt], SamplingParams(max_tokens=2, temperature=0, ignore_eos=True))
        assert llm.metrics()["chunks"] == length // CHUNK
        ours = llm.prompt_logits(prompt)
    exact = plain_logits({**(FAMILIES | LATER | LATENT)[family], **fields}, tensors, prompt, places)
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
