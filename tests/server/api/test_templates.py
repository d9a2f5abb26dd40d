"""A chat template that refuses or fails is the request's error, in its words and without a path; parts reach it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from atb_models.demo import demo_path
from tests.server.running import Running, running

TEMPLATE = """\
{% for message in messages %}
{% if message.role == 'system' %}{{ raise_exception('no system role, turn ' ~ loop.index) }}{% endif %}
{% if message.content is string %}
{% if message.content == 'divide' %}{{ 1 / 0 }}{% elif message.content == 'recurse' %}{{ deeper() }}{% endif %}
{{ message.content }}
{% else %}
{% for part in message.content %}<{{ part.text }}>{% endfor %}
{% endif %}
{% endfor %}"""


@pytest.fixture(scope="module")
def templated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("secret-name") / "model"
    shutil.copytree(demo_path(), folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("{% broken")
    with running("--model_path", str(folder), "--model_name", "demo") as one:
        yield one


@pytest.mark.parametrize(
    ("role", "content", "words"),
    [
        ("system", "Hi", "chat_template.jinja cannot render this conversation: no system role, turn 1"),
        ("user", "divide", "chat_template.jinja cannot render this conversation: division by zero"),
        ("user", "recurse", "chat_template.jinja cannot render this conversation: 'deeper' is undefined"),
        ("wizard", "Hi", "message 0 has the role 'wizard'"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/tokenize"])
def test_what_a_template_refuses(templated: Running, path: str, role: str, content: str, words: str) -> None:
    answer = templated.json(path, {"messages": [{"role": role, "content": content}]}, status=400)
    assert words in str(answer) and "secret-name" not in str(answer)


def test_parts_reach_a_template_that_looks_into_them(templated: Running) -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    tokens = templated.json("/tokenize", {"messages": [{"role": "user", "content": parts}]})["tokens"]
    assert templated.json("/detokenize", {"tokens": tokens})["prompt"].strip() == "<one><two>"
    joined = templated.json("/tokenize", {"messages": [{"role": "user", "content": "onetwo"}]})["tokens"]
    assert templated.json("/detokenize", {"tokens": joined})["prompt"].strip() == "onetwo"


def test_texts_need_no_template(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(demo_path(), folder)
    (folder / "chat_template.jinja").write_bytes(b"line 1\n\xff")
    with running("--model_path", str(folder), "--model_name", "demo") as one:
        assert one.json("/v1/completions", {"prompt": "Hi", "max_tokens": 2})["choices"]
        answer = one.json("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}]}, status=400)
        said = "chat_template.jinja is not UTF-8 text: invalid start byte at byte 7, in line 2"
        assert said in str(answer) and str(tmp_path) not in str(answer)
