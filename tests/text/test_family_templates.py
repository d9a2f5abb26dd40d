"""What the chat templates of Qwen3, Llama 3.1 and DeepSeek-V3 do gives the text that a newer transformers gives."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from atb_models.errors import RequestError
from atb_models.text.chat.template import ChatTemplate
from tests.text.newer import templates
from tests.text.test_newer_files import NEWER

FOLDER = Path(templates.__file__).parent
EXPECTED: dict[str, str | None] = json.loads((FOLDER / "rendered.json").read_text(encoding="utf-8"))
LISTS = "{% if messages[0].content is iterable %}{{ messages[0].content }}{% endif %}"


TEMPLATES = {name: ChatTemplate(source, templates.TOKENS, "it") for name, source in templates.SOURCES.items()}


def render(name: str, title: str, kind: str) -> str:
    variables = templates.VARIABLES[kind]
    read = {key: value for key, value in variables.items() if key in templates.SOURCES[name]}
    return TEMPLATES[name].render(templates.CHATS[title], add_generation_prompt=kind != "plain", **read)


@pytest.mark.parametrize("name", templates.SOURCES)
def test_same_text_as_newer_transformers(name: str) -> None:
    rows = {key: text for key, text in EXPECTED.items() if key.startswith(f"{name}, ")}
    assert len(rows) == len(templates.CHATS) * len(templates.VARIABLES)
    for key, text in rows.items():
        if text is None:
            with pytest.raises(RequestError, match="it cannot render this conversation"):
                render(*key.split(", "))
        else:
            assert render(*key.split(", ")) == text, key


def test_a_switch_changes_the_text() -> None:
    on, off = (render("qwen", "one", kind) for kind in ("thinking", "no thinking"))
    assert off.endswith("<think></think>") and not on.endswith("<think></think>")
    assert EXPECTED["deepseek, one, no thinking"] != EXPECTED["deepseek, one, thinking"]


@pytest.mark.parametrize("variables", [{"enable_thinking": False}, {"tools": templates.TOOLS, "documents": None}])
def test_variables_that_a_template_does_not_read_are_refused(variables: dict[str, Any]) -> None:
    template = ChatTemplate("{{ messages[0].content }}", {}, "the template")
    with pytest.raises(RequestError, match=f"the template does not read {next(iter(variables))}$"):
        template.render(templates.CHATS["one"], **variables)


def test_what_tells_where_a_message_comes_from_needs_no_template_that_reads_it() -> None:
    template = ChatTemplate("{% for m in messages %}{{ m.role }}{{ 'tool' == m.role }} {% endfor %}", {}, "it")
    reasoned = {"role": "assistant", "content": "", "reasoning_content": "hm"}
    assert template.render([templates.RESULT, reasoned]) == "toolTrue assistantFalse "
    for message in ({**templates.RESULT, "role": "user"}, {**reasoned, "tool_call_id": "1"}):
        with pytest.raises(RequestError, match="message 0 has tool_call_id.*, which it does not use"):
            template.render([message])


def test_parts_of_text_are_joined_where_a_template_only_asks_whether_it_is_a_list() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": " two"}]
    assert ChatTemplate(LISTS, {}, "it").render([{"role": "user", "content": parts}]) == "one two"
    image = [*parts, {"type": "image"}]
    assert ChatTemplate(LISTS, {}, "it").render([{"role": "user", "content": image}]) == str(image)


@pytest.mark.full
def test_the_texts_are_those_of_a_newer_transformers() -> None:
    python = os.environ.get(NEWER)
    if not python:
        pytest.skip(f"needs {NEWER}: {FOLDER / 'reference.py'} says what it must have")
    run = subprocess.run([python, str(FOLDER / "templates.py")], capture_output=True, text=True, check=True)
    assert json.loads(run.stdout) == EXPECTED
