"""From outside: a model and a service whose checkpoints have tokenizers in the newer forms."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny

from atb_models import LLM, SamplingParams
from atb_models.errors import RequestError
from tests.server.running import running
from tests.text.newer import cases, templates
from tests.text.test_newer_files import EXPECTED

TEXT = 3  # of cases.TEXTS: it has special and added tokens


def checkpoint(folder: Path, name: str) -> Path:
    """A case with random weights, and a chat template of Qwen3's kind."""
    path = cases.write(folder)[name]
    tokens = max(index for ids in EXPECTED[name]["ids"] for index in ids) + 1
    (path / "config.json").write_text(json.dumps(tiny.DEEPSEEK | {"vocab_size": max(tokens, 600)}))
    (path / "chat_template.jinja").write_text(templates.QWEN)
    return path


@pytest.mark.parametrize("name", ["whole words", "spm first"])
def test_a_model_generates_and_chats(tmp_path: Path, name: str) -> None:
    if name.startswith("spm"):
        pytest.importorskip("sentencepiece", reason="needs the extra tokenizers")
    params = SamplingParams(max_tokens=12, ignore_eos=True)
    with LLM(checkpoint(tmp_path, name), dtype="fp32", device="cpu", load_format="dummy", block_size=16) as llm:
        (output,) = llm.generate([cases.TEXTS[TEXT]], params)
        assert output.prompt_token_ids == EXPECTED[name]["ids"][TEXT]
        assert output.text == llm.tokenizer.decode(output.token_ids)
        *_, last = (streamed := list(llm.generate([cases.TEXTS[TEXT]], params, stream=True)))
        assert "".join(one.delta for one in streamed) == last.text == output.text
        asked = [templates.CHATS["one"]]
        for thinks, end in ((True, "[assistant] "), (False, "<think></think>")):
            (answer,) = llm.chat(asked, params, enable_thinking=thinks, tools=templates.TOOLS)
            prompt = llm.tokenizer.decode(answer.prompt_token_ids, skip_special_tokens=False)
            assert prompt.startswith("[tools]") and prompt.rstrip(" ").endswith(end.rstrip(" "))
        with pytest.raises(RequestError, match="does not read sampling_params"):
            llm.chat(asked, sampling_params=params)


def test_the_service_tokenizes(tmp_path: Path) -> None:
    pytest.importorskip("tiktoken", reason="needs the extra tokenizers")
    name = "kimi tiktoken"
    path = checkpoint(tmp_path, name)
    with running("--model_path", str(path), "--load_format", "dummy", "--dtype", "fp32") as server:
        for text, ids in zip(cases.TEXTS, EXPECTED[name]["ids"], strict=True):
            if text:
                assert server.json("/tokenize", {"prompt": text})["tokens"] == ids
        tool, (hello,) = EXPECTED[name]["ids"][4][0], server.json("/tokenize", {"prompt": "Hello"})["tokens"]
        assert server.json("/detokenize", {"tokens": [hello, tool]})["prompt"] == "Hello<tool>"
        body: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi 你好"}], "max_tokens": 8, "logprobs": True}
        choice = server.json("/v1/chat/completions", body | {"ignore_eos": True})["choices"][0]
        data = b"".join(bytes(token["bytes"]) for token in choice["logprobs"]["content"])
        assert data.decode("utf-8", "replace") == choice["message"]["content"]
