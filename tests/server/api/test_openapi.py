"""/openapi.json says what there is, and replies are what it says; /docs shows it without another host."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.server.running import Running

TURN = [{"role": "user", "content": "x"}]
BODIES: dict[str, Any] = {
    "/": {"prompt": "x", "max_length": 2},
    "/generate": {"inputs": "x", "parameters": {"details": True, "top_n_tokens": 1, "max_new_tokens": 2}},
    "/infer": {"inputs": "x", "parameters": {"details": True, "max_new_tokens": 2}},
    "/infer_token": {"input_id": [5], "parameters": {"max_new_tokens": 2}},
    "/v1/tokenizer": {"inputs": "x"},
    "/v2/models/demo/generate": {"text_input": "x", "parameters": {"details": True, "max_new_tokens": 2}},
    "/v1/chat/completions": {"messages": TURN, "max_tokens": 2, "logprobs": True, "top_logprobs": 1},
    "/v1/completions": {"prompt": "x", "max_tokens": 2, "logprobs": 1, "echo": True},
    "/tokenize": {"prompt": "x", "return_token_strs": True},
    "/detokenize": {"tokens": [5]},
}
READ = ("/v1/models", "/v1/models/demo", "/info", "/v2", "/v2/models/demo", "/v2/models/demo/ready",
        "/v2/models/demo/getSlotCount")  # fmt: skip


@pytest.fixture(scope="session")
def document(server: Running) -> Any:
    return server.json("/openapi.json")


def check(document: Any, path: str, method: str, status: int, reply: Any) -> None:
    """The reply has the schema that the document gives it, and no field beyond."""
    jsonschema = pytest.importorskip("jsonschema_rs", reason="needs jsonschema_rs, which comes with schemathesis")
    template = path.replace("/demo", "/{model}")
    schema = document["paths"][template][method]["responses"][str(status)]["content"]["application/json"]["schema"]
    components = {
        name: one | ({"additionalProperties": False} if one.get("type") == "object" else {})
        for name, one in document["components"]["schemas"].items()
    }
    jsonschema.validate({**schema, "components": {"schemas": components}}, reply)


@pytest.mark.parametrize("path", BODIES)
def test_answers_are_as_documented(server: Running, document: Any, path: str) -> None:
    check(document, path, "post", 200, server.json(path, BODIES[path]))


@pytest.mark.parametrize("path", READ)
def test_facts_are_as_documented(server: Running, document: Any, path: str) -> None:
    check(document, path, "get", 200, server.json(path))


@pytest.mark.parametrize("path", [path for path in BODIES if "{" not in path])
def test_errors_are_as_documented(server: Running, document: Any, path: str) -> None:
    check(document, path, "post", 422, server.json(path, {"nonsense": 1}, status=422))


def test_every_endpoint_says_what_it_answers(document: Any) -> None:
    for path, methods in document["paths"].items():
        for method, about in methods.items():
            assert about.get("description"), (path, method)
            if method == "post":
                assert {"200", "400", "401", "413", "422", "429", "503"} <= set(about["responses"]), path
                assert not any("HTTPValidationError" in str(one) for one in about["responses"].values()), path


def test_the_page_lists_every_endpoint_and_needs_no_other_host(server: Running, document: Any) -> None:
    response, data = server.request("GET", "/docs")
    page = data.decode()
    assert response.status == 200
    for path, methods in document["paths"].items():
        for method in methods:
            assert f"{method.upper()} {path}</code>" in page
    assert not re.search(r"https?://|<script|@import|<link", page)
    assert "script-src" not in response.getheader("content-security-policy", "")
    assert response.getheader("content-security-policy", "").startswith("default-src 'none'")
