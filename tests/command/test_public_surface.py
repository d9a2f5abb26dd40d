"""Names that users rely on: a change here is a change for them."""

from __future__ import annotations

import inspect
from dataclasses import fields
from typing import get_type_hints

import pytest

import atb_models
from atb_models import LLM, RequestOutput, SamplingParams
from atb_models.engine.config import EngineConfig

LLM_DEFAULTS = {
    "dtype": "fp16", "device": None, "tp": 1, "block_size": 128, "max_batch_size": 64, "max_seq_len": None,
    "max_prefill_tokens": None, "kv_blocks": None, "prefix_cache": True, "chat_template": None,
    "config_overrides": None, "trust_remote_code": False, "load_format": "auto", "deterministic": False,
    "graph_capture": None, "quantize": None, "kv_dtype": "auto",
}  # fmt: skip
SAMPLING_DEFAULTS = {
    "max_tokens": None, "temperature": None, "top_k": None, "top_p": None, "min_p": None, "repetition_penalty": None,
    "presence_penalty": None, "frequency_penalty": None, "seed": None, "stop": None, "stop_token_ids": None,
    "ignore_eos": False, "logprobs": None, "logprob_token_ids": None, "prompt_logprobs": None,
    "logit_bias": None,
}  # fmt: skip


def test_exports():
    assert atb_models.__all__ == ["LLM", "RequestOutput", "SamplingParams", "__version__"]
    assert dir(atb_models) == sorted(atb_models.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Llm'"):
        atb_models.Llm  # noqa: B018


def test_llm_arguments():
    parameters = inspect.signature(LLM).parameters
    assert next(iter(parameters)) == "model_path" and parameters["model_path"].default is None
    named = {name: p.default for name, p in parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}
    assert named == LLM_DEFAULTS


def test_llm_states_the_fields_of_its_config():
    """Editors and `help` show the constructor's signature; what is in force is EngineConfig's."""
    stated = {name: parameter.default for name, parameter in inspect.signature(LLM).parameters.items()}
    assert stated == {field.name: field.default for field in fields(EngineConfig)}
    hints, fields_hints = get_type_hints(LLM.__init__), get_type_hints(EngineConfig)
    assert {name: hints[name] for name in LLM_DEFAULTS} == {name: fields_hints[name] for name in LLM_DEFAULTS}


def test_llm_methods():
    assert list(inspect.signature(LLM.generate).parameters) == ["self", "prompts", "params", "stream"]
    assert list(inspect.signature(LLM.chat).parameters)[:3] == ["self", "conversations", "params"]
    assert list(inspect.signature(LLM.prompt_logits).parameters) == ["self", "token_ids"]
    for name in ("metrics", "close", "__enter__", "__exit__"):
        assert callable(getattr(LLM, name))


def test_sampling_params():
    assert {field.name: field.default for field in fields(SamplingParams)} == SAMPLING_DEFAULTS


def test_request_output():
    wanted = {"prompt_token_ids", "token_ids", "text", "finish_reason", "logprobs", "prompt_logprobs", "metrics"}
    assert wanted <= {field.name for field in fields(RequestOutput)}
