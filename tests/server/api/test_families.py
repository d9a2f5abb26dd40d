"""Each family of models behind MindIE's and TGI's endpoints, and the tutorials', on a small random checkpoint.

One of them by default: the endpoints do not know the family, and their other tests serve one of DeepSeek's.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from atb_models import LLM, SamplingParams
from tests.server.running import running
from tests.tiny import FAMILIES, LATER, write_checkpoint
from tests.tiny_latent import LATENT, write_latent

PROMPT = "Who is the CEO of Google?"
TOKENS = 12


OTHERS = [family for family in FAMILIES | LATER | LATENT if family != "qwen"]


@pytest.fixture(params=["qwen", *(pytest.param(family, marks=pytest.mark.full) for family in OTHERS)])
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path, demo: Path) -> Path:
    """With the embedded checkpoint's tokenizer."""
    fields = {"vocab_size": 2496, "bos_token_id": 0, "eos_token_id": 1}
    if request.param in LATENT:
        write_latent(tmp_path, request.param, **fields)
    else:
        write_checkpoint(tmp_path, family=request.param, **fields)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(demo / name, tmp_path)
    return tmp_path


def test_every_form_gives_what_the_model_says(checkpoint: Path) -> None:
    with LLM(str(checkpoint), dtype="fp32") as llm:
        params = SamplingParams(max_tokens=TOKENS)
        plain = llm.generate([PROMPT], params)[0]
        chat = llm.chat([[{"role": "user", "content": PROMPT}]], params)[0]
    asked = {"inputs": PROMPT, "parameters": {"max_new_tokens": TOKENS, "details": True}}
    with running("--model_path", str(checkpoint), "--dtype", "fp32", "--model_name", "m") as server:
        assert server.json("/infer", asked)["details"]["generated_token_ids"] == plain.token_ids
        assert [token["id"] for token in server.json("/generate", asked)["details"]["tokens"]] == plain.token_ids
        triton = {"text_input": PROMPT, "parameters": {"max_new_tokens": TOKENS}}
        assert server.json("/v2/models/m/generate", triton)["text_output"] == plain.text
        assert server.json("/", {"prompt": PROMPT, "max_length": TOKENS})["response"] == chat.text
        assert server.end() == 0
