"""Every form of a request takes the sampling fields that the table says it takes, by their names, in their ranges."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from atb_models.sampling_table import BY_NAME, FIELDS, FORMS, Form, SamplingField
from atb_models.server.api.mindie import InferBody, InferTokenBody, MindieParameters
from atb_models.server.api.openai.chat import ChatBody
from atb_models.server.api.openai.completions import CompletionBody
from atb_models.server.api.sampling import AtRest
from atb_models.server.api.tgi import TgiBody, TgiParameters
from atb_models.server.api.triton import TritonBody
from atb_models.server.api.vllm import VllmBody
from tests.server.running import ROOT, Running

BODIES: dict[Form, type[BaseModel]] = {
    "chat": ChatBody, "completion": CompletionBody, "vllm": VllmBody, "tgi": TgiParameters, "mindie": MindieParameters,
}  # fmt: skip
# What a body needs, and what else its fields need.
NEEDED: dict[Form, dict[str, Any]] = {
    "chat": {"messages": [{"role": "user", "content": "x"}], "logprobs": True},
    "completion": {"prompt": "x"},
    "vllm": {"prompt": "x"},
    "tgi": {},
    "mindie": {},
}
# Fields that say nothing of how tokens are chosen, or that are taken only where they ask for nothing.
AT_REST = set(AtRest.model_fields)
OPENAI = AT_REST | set(
    "model n best_of stream stream_options user safety_identifier prompt_cache_key metadata store"
    " service_tier priority add_special_tokens response_format".split()
)
TGI = AT_REST | set("do_sample details min_p presence_penalty stop_token_ids n best_of".split())
OTHERS: dict[Form, set[str]] = {
    "chat": OPENAI | set(
        "messages logprobs add_generation_prompt documents include_reasoning tools tool_choice functions function_call"
        " parallel_tool_calls modalities reasoning_effort verbosity chat_template_kwargs continue_final_message".split()
    ),
    "completion": OPENAI | {"prompt", "echo", "suffix"},
    "vllm": AT_REST | {"prompt", "model", "stream", "n", "best_of", "logprobs", "prompt_logprobs"},
    "tgi": TGI | set("truncate return_full_text decoder_input_details grammar adapter_id".split()),
    "mindie": TGI | {"priority", "timeout", "perf_stat"},
}  # fmt: skip
VALUES: dict[str, Any] = {
    "max_tokens": 1, "temperature": 0.5, "top_k": 5, "top_p": 0.9, "min_p": 0.1, "repetition_penalty": 1.1,
    "presence_penalty": 0.5, "frequency_penalty": -0.5, "seed": 7, "stop": ["x"], "stop_token_ids": [5],
    "ignore_eos": True, "logprobs": 2, "logprob_token_ids": [1], "prompt_logprobs": 1, "logit_bias": {"5": 1.0},
}  # fmt: skip
LARGEST = {"logprobs": 20}  # of an answer over HTTP, as OpenAI has it; elsewhere the table has no end
ALSO = {("completion", "max_tokens"): 0}  # with echo: the prompt alone


def test_triton_has_mindies_parameters_and_all_of_mindies_bodies_have_them() -> None:
    for body in (TritonBody, InferBody, InferTokenBody):
        assert body.model_fields["parameters"].annotation is MindieParameters
    assert TgiBody.model_fields["parameters"].annotation is TgiParameters
    assert set(BODIES) == set(FORMS) and set(VALUES) == set(BY_NAME)


@pytest.mark.parametrize("form", FORMS)
def test_a_form_has_the_tables_names_and_no_others(form: Form) -> None:
    named = {name for field in FIELDS for name in getattr(field.names, form)}
    assert not named & OTHERS[form]
    assert set(BODIES[form].model_fields) == named | OTHERS[form]


def takes(form: Form, name: str, value: object) -> bool:
    """Whether a body with this field is one; only this field may be why it is none."""
    try:
        body = BODIES[form].model_validate(NEEDED[form] | {name: value})
    except ValidationError as error:
        assert {place["loc"][0] for place in error.errors()} == {name}
        return False
    assert getattr(body, name) == value
    return True


def cases() -> Iterator[Any]:
    for form in FORMS:
        for field in FIELDS:
            for name in getattr(field.names, form):
                yield pytest.param(form, field, name, id=f"{form}-{name}")


@pytest.mark.parametrize("form, field, name", list(cases()))
def test_a_form_has_the_tables_ranges(form: Form, field: SamplingField, name: str) -> None:
    assert takes(form, name, VALUES[field.name]) and takes(form, name, None)
    if field.kind not in ("number", "whole number"):
        wrong: dict[str, Any] = {"texts": [""], "token ids": [-1], "yes or no": 1}
        assert not takes(form, name, wrong[field.kind])
        return
    kind = int if field.kind == "whole number" else float
    step = 1 if kind is int else 1e-6
    if math.isfinite(field.low):
        assert takes(form, name, kind(field.low)) != field.above_low and takes(form, name, kind(field.low + step))
        below = kind(field.low - step)
        assert takes(form, name, below) == (ALSO.get((form, field.name)) == below)
    else:
        assert takes(form, name, -(2**62))
    largest = LARGEST.get(field.name, field.high)
    if math.isfinite(largest):
        assert takes(form, name, kind(largest)) and not takes(form, name, kind(largest + step))
    else:
        assert takes(form, name, kind(2**31 - 1))
    assert not takes(form, name, True) and not takes(form, name, "1")


ENDPOINTS = [
    ("chat", "/v1/chat/completions", NEEDED["chat"], None),
    ("completion", "/v1/completions", NEEDED["completion"], None),
    ("vllm", "/generate", NEEDED["vllm"], None),
    ("tgi", "/generate", {"inputs": "x"}, "parameters"),
    ("tgi", "/", {"inputs": "x"}, "parameters"),
    ("mindie", "/infer", {"inputs": "x"}, "parameters"),
    ("mindie", "/infer_token", {"input_id": [5]}, "parameters"),
    ("mindie", "/v2/models/demo/generate", {"text_input": "x"}, "parameters"),
]


@pytest.mark.parametrize(
    "form, path, needed, inner", ENDPOINTS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_endpoints_answer_with_all_their_fields_and_refuse_each_other_by_name(
    server: Running, form: Form, path: str, needed: dict[str, Any], inner: str | None
) -> None:
    def ask(fields: dict[str, Any], status: int) -> Any:
        return server.json(path, needed | (fields if inner is None else {inner: fields}), status=status)

    ask({name: VALUES[field.name] for field in FIELDS for name in getattr(field.names, form)}, 200)
    for field in FIELDS:
        if not getattr(field.names, form):
            assert field.name in str(ask({field.name: VALUES[field.name]}, 422))


@pytest.mark.parametrize("document", ["docs/service.md", "docs/service.zh.md"])
def test_documents_list_the_fields_of_each_form(document: str) -> None:
    places = {"chat": (0, 1, 2), "completion": (0, 1, 3), "vllm": (0, 4), "tgi": (5, 6), "mindie": (5, 7)}
    lines = (ROOT / document).read_text("utf-8").splitlines()
    start = next(place for place, line in enumerate(lines) if line.startswith("|") and "`min_p`" in line)
    taken = [re.findall(r"`(\w+)`", line.split("|")[2]) for line in lines[start : start + 8]]
    for form in FORMS:
        listed = {name for place in places[form] for name in taken[place]}
        assert listed - OTHERS[form] == {name for field in FIELDS for name in getattr(field.names, form)}, form
