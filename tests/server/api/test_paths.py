"""No path of the server is in anything that a client can read, and the log names the field that was refused."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from atb_models.server.errors import without_paths
from tests.server.raw import wait_for
from tests.server.running import ROOT, Running, running

TEMPLATE = """{% if messages[0].role == 'system' %}{{ raise_exception('no system role here') }}{% endif %}
{% if messages[0].content == 'divide' %}{{ 1 // 0 }}{% endif %}
{% if messages[0].content == 'lack' %}{{ messages[0]['content'].nothing.more }}{% endif %}
{{ messages[0].content }}"""
SECRET = "secret customer"
USER = {"role": "user", "content": "hi"}
CHATS: list[tuple[Any, str]] = [
    ([USER | {"name": "a"}], "name"),
    ([{"role": "system", "content": "x"}, USER], "no system role here"),
    ([{"role": "user", "content": "divide"}], "by zero"),
    ([{"role": "user", "content": "lack"}], "nothing"),
    ([{"role": "wizard", "content": "x"}], "wizard"),
]
GETS = (
    "/", "/health", "/ready", "/v1/models", "/v1/models/x", "/info", "/metrics", "/metrics-json", "/docs",
    "/openapi.json", "/v2", "/v2/models/m", "/v2/models/m/ready", "/v2/models/m/getSlotCount", "/v2/health/live",
    "/nowhere", "/../../etc/passwd",
)  # fmt: skip


@pytest.fixture(scope="module")
def hidden(tmp_path_factory: pytest.TempPathFactory, demo: Path) -> Iterator[Running]:
    """A service whose checkpoint lies in a folder with a telling name; its template refuses in several ways."""
    folder = tmp_path_factory.mktemp("models") / SECRET / "model"
    shutil.copytree(demo, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    with running("--model_path", str(folder), "--model_name", "m", wait=False) as server:
        wait_for(lambda: server.url)
        for path in ("/health", "/v1/models", "/ready"):
            _read(server, "GET", path)  # while it loads
        server.wait_until_ready()
        yield server
        assert "Traceback" not in server.log


def _read(server: Running, method: str, path: str, body: Any = None) -> tuple[int, str]:
    """Status and body, in which, as in the headers, is no path."""
    response, data = server.request(method, path, body)
    shown = data.decode() + str(response.getheaders())
    for secret in (SECRET, "secret", "/tmp", str(ROOT), "site-packages", "/usr/", "/home/", "/root"):
        assert secret not in shown, (method, path, shown[:500])
    return response.status, data.decode()


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/tokenize"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_template_that_refuses_says_so_without_its_place(hidden: Running, path: str, stream: bool) -> None:
    flags = {"stream": True} if stream and path != "/tokenize" else {}
    for messages, words in CHATS:
        status, shown = _read(hidden, "POST", path, {"messages": messages} | flags)
        assert status == 400 and words in shown and "messages" in shown, shown
    assert _read(hidden, "POST", path, {"messages": [USER]} | flags)[0] == 200


def test_the_tutorials_form_renders_a_template_too(hidden: Running) -> None:
    status, shown = _read(hidden, "POST", "/", {"prompt": "divide"})
    assert status == 400 and "by zero" in shown and "prompt: " in shown


def test_other_refusals_and_pages(hidden: Running) -> None:
    for path, body in (
        ("/v1/completions", {"prompt": [7] * 9000}),
        ("/v1/completions", {"prompt": [99999]}),
        ("/v1/completions", {"prompt": []}),
        ("/v1/completions", {"prompt": "\ud800", "max_tokens": 1}),
        ("/infer", {"input_id": [99999]}),
        ("/v1/completions", b"{"),
        ("/generate", {"inputs": "x", "parameters": {"watermark": True}}),
    ):
        status, shown = _read(hidden, "POST", path, body)
        assert status in (400, 422) and (path == "/v1/completions" or "input" in shown or "watermark" in shown)
    for path in GETS:
        _read(hidden, "GET", path)


@pytest.mark.parametrize(
    "path, body, field",
    [
        ("/v1/completions", {"prompt": "x", "max_tokens": "3"}, "max_tokens"),
        ("/generate", {"inputs": "x", "parameters": {"top_p": 3}}, "parameters.top_p"),
        ("/v1/chat/completions", {"messages": [USER, {"role": "user", "content": 3}]}, "messages.1.content"),
        ("/v1/chat/completions", {"messages": [USER | {"a\nb": 1}]}, "messages.0.a%0Ab"),
        ("/infer_token", {"input_id": [99999]}, "input_id"),
        ("/v1/completions", {"prompt": ["x", "\ud800"]}, "prompt.1"),
        ("/v2/models/demo/generate", {"text_input": "x" * 9000, "parameters": {"max_new_tokens": 4}}, "text_input"),
        ("/v1/completions", {"prompt": "x", "n": 3, "best_of": 2}, "best_of"),
        ("/v1/chat/completions", {"messages": [USER], "top_logprobs": 3}, "top_logprobs"),
    ],
)
def test_the_log_and_the_body_name_the_field(server: Running, path: str, body: Any, field: str) -> None:
    before = len(server.log)
    response, data = server.request("POST", path, body)
    assert response.status in (400, 422)
    assert field.replace("%0A", "\\n") in data.decode()
    line = wait_for(lambda: re.search(rf"POST {path} {response.status} .*", server.log[before:]))
    assert line[0].endswith(f"s, refused field: {field}"), line[0]


def test_what_is_cut_out_of_a_message() -> None:
    folder = Path("/srv/my models/a")
    for text, shown in (
        ("/srv/my models/a/chat_template.jinja cannot render", "chat_template.jinja cannot render"),
        ("the folder /srv/my models/a has none", "the folder a has none"),
        ("see '/opt/x/y.py', line 3", "see 'y.py', line 3"),
        ("either and/or 3/4 of http://host/a/b", "either and/or 3/4 of http://host/a/b"),
        ("the model 'org/name' is not here", "the model 'org/name' is not here"),
    ):
        assert without_paths(text, folder) == shown
