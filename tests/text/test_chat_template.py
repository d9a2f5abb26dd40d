"""Where a chat template may stand, which one is taken, and that a broken one hinders nothing but chats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from atb_models.errors import ConfigError, RequestError
from atb_models.text.tokenizer import Tokenizer, load_tokenizer
from tests.text.test_tokenizer_chat import USER, load

TOOLS = [{"type": "function", "function": {"name": "f"}}]


def put(folder: Path, files: dict[str, str | bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def again(folder: Path, given: str | None = None) -> Tokenizer:
    tokenizer = load_tokenizer(folder, given)
    assert tokenizer is not None
    return tokenizer


READ = "{% if tools %}{% endif %}"  # a template that reads no tools is given none
NAMED = {"default": "D", "tool_use": "T{{ tools | length }}", "rag": f"R{READ}"}


@pytest.mark.parametrize(
    "form", [NAMED, [{"name": name, "template": source} for name, source in NAMED.items()]], ids=["object", "list"]
)
def test_named_templates(tmp_path: Path, form: Any) -> None:
    tokenizer = load(tmp_path, form)
    assert tokenizer.render_chat(USER) == tokenizer.render_chat(USER, tools=None) == "D"
    assert tokenizer.render_chat(USER, tools=TOOLS) == "T1"
    assert load(tmp_path, form, "rag").render_chat(USER, tools=TOOLS) == "R"
    with pytest.raises(ConfigError, match="chat_template 'none' is neither a file nor .* nor the name of one of the"):
        load(tmp_path, form, "none")


def test_named_templates_without_a_default(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, {"tool_use": f"T{READ}", "chat": "C"})
    assert tokenizer.render_chat(USER, tools=TOOLS) == "T" and tokenizer.encode("a")
    said = "tokenizer_config.json has several chat templates, chat, tool_use, and none is the default"
    with pytest.raises(RequestError, match=said):
        tokenizer.render_chat(USER)


@pytest.mark.parametrize(
    ("files", "text"),
    [
        ({"chat_template.jinja": f"file{READ}"}, "file"),
        ({"additional_chat_templates/default.jinja": f"more{READ}"}, "more"),
        ({"chat_template.jinja": f"file{READ}", "additional_chat_templates/default.jinja": "more"}, "file"),
        ({"chat_template.jinja": "file", "additional_chat_templates/tool_use.jinja": f"tools{READ}"}, "file"),
        ({"chat_template.json": '{"chat_template": "legacy"}'}, "settings"),
        ({"additional_chat_templates/tool_use.txt": "no template"}, "settings"),
    ],
)
def test_files_before_settings(tmp_path: Path, files: dict[str, str], text: str) -> None:
    put(tmp_path, files)
    tokenizer = load(tmp_path, f"settings{READ}")
    assert tokenizer.render_chat(USER) == text
    tools = "tools" if "additional_chat_templates/tool_use.jinja" in files else text
    assert tokenizer.render_chat(USER, tools=TOOLS) == tools


def test_the_processors_old_file_where_there_is_no_other(tmp_path: Path) -> None:
    put(tmp_path, {"chat_template.json": '\ufeff{"chat_template": "legacy"}'})
    assert load(tmp_path).render_chat(USER) == "legacy"


def test_a_mark_of_the_encoding_and_windows_line_ends_are_no_text(tmp_path: Path) -> None:
    source = "\ufeff{% for m in messages %}\r\n{{ m.content }}\x0b\u2028\x85\r\n{% endfor %}"
    put(tmp_path, {"chat_template.jinja": source, "mine.jinja": source})
    expected = "Hi\x0b\u2028\x85\n"
    assert load(tmp_path).render_chat(USER) == expected
    assert load(tmp_path, given=str(tmp_path / "mine.jinja")).render_chat(USER) == expected


BROKEN: list[tuple[dict[str, str | bytes], str]] = [
    ({"chat_template.jinja": "a\n{% for m in messages %}"}, "chat_template.jinja is no .* template, line 2: .*endfor"),
    ({"chat_template.jinja": "a\n\n{% soon %}"}, "chat_template.jinja is no .* template, line 3: .*unknown tag 'soon'"),
    ({"chat_template.jinja": "{{ " + "(" * 2000}, "chat_template.jinja is no valid Jinja template: maximum recursion"),
    ({"chat_template.jinja": "a\n你".encode("gbk")}, "chat_template.jinja is not UTF-8 text: .* at byte 2, in line 2"),
    ({"chat_template.jinja": "hi".encode("utf-16")}, "chat_template.jinja is not UTF-8 text: .*UTF-16"),
    ({"additional_chat_templates/default.jinja": "{{"}, "additional_chat_templates/default.jinja is no valid Jinja"),
    ({"chat_template.json": "{"}, "chat_template.json is not valid JSON"),
    ({"chat_template.json": "{}"}, "chat_template.json: chat_template is of type NoneType"),
    ({"chat_template.json": '{"chat_template": "{{"}'}, "the chat template of chat_template.json is no valid"),
]  # fmt: skip


@pytest.mark.parametrize(("files", "said"), BROKEN)
def test_a_broken_file_is_told_when_a_chat_is_asked(tmp_path: Path, files: dict[str, str | bytes], said: str) -> None:
    put(tmp_path, files)
    tokenizer = load(tmp_path)
    assert tokenizer.encode("a")
    for _ in range(2):
        with pytest.raises(RequestError, match=said) as refused:
            tokenizer.render_chat(USER)
        assert str(tmp_path) not in str(refused.value)  # clients read it


FORMS = "tokenizer_config.json: chat_template must be a template, an object of templates by name, or a list"


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ("{{", "the chat template of tokenizer_config.json is no valid Jinja template, line 1"),
        ({"default": "ok\n{% x %}"}, "the chat template 'default' of tokenizer_config.json is no valid .*, line 2"),
        (5, FORMS),
        ([], FORMS),
        ({}, FORMS),
        ({"default": None}, FORMS),
        ({"default": {"template": "x"}}, FORMS),
        (["x"], FORMS),
        ([{"name": "default"}], FORMS),
        ([{"name": ["default"], "template": "x"}], FORMS),
        ([{"name": 2**62, "template": 10**400}], FORMS),
    ],
)
def test_a_broken_field_is_told_when_a_chat_is_asked(tmp_path: Path, field: Any, said: str) -> None:
    tokenizer = load(tmp_path, field)
    assert tokenizer.encode("a")
    with pytest.raises(RequestError, match=said) as refused:
        tokenizer.render_chat(USER)
    assert str(tmp_path) not in str(refused.value)
    assert load(tmp_path, field, "{{ messages[0].content }}").render_chat(USER) == "Hi"


def test_a_file_that_is_not_there_or_cannot_be_read(tmp_path: Path) -> None:
    load(tmp_path, "settings")
    (tmp_path / "chat_template.jinja").symlink_to(tmp_path / "gone")
    with pytest.raises(RequestError, match=r"^chat_template.jinja cannot be read: No such file"):
        again(tmp_path).render_chat(USER)
    (tmp_path / "chat_template.jinja").unlink()
    (tmp_path / "chat_template.jinja").mkdir()
    with pytest.raises(RequestError, match=r"^chat_template.jinja cannot be read: Is a directory"):
        again(tmp_path).render_chat(USER)


def test_the_users_own_template_is_told_at_once(tmp_path: Path) -> None:
    put(tmp_path, {"mine.jinja": "a\n{% endfor %}", "gbk.jinja": "你".encode("gbk")})
    with pytest.raises(ConfigError, match="the given chat template is no valid Jinja template, line 2"):
        load(tmp_path, given=str(tmp_path / "mine.jinja"))
    with pytest.raises(ConfigError, match=f"chat template {tmp_path}/gbk.jinja is not UTF-8 text"):
        load(tmp_path, given=str(tmp_path / "gbk.jinja"))


def test_tokens_of_newer_settings_are_variables(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    settings = {"extra_special_tokens": {"image_token": "<img>"}, "audio_token": "<snd>", "bos_token": "<s>"}
    tokenizer = load(tmp_path / "new", "{{ image_token }}{{ audio_token }}{{ bos_token }}", settings=settings)
    assert tokenizer.render_chat(USER) == "<img><snd><s>"
    assert len(tokenizer.encode("<img>", add_special_tokens=False)) == 1
    source = "{{ additional_special_tokens | join }}"
    more = load(tmp_path, source, settings={"extra_special_tokens": ["<a>", {"content": "<b>"}]})
    assert more.render_chat(USER) == "<a><b>"
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["extra_special_tokens"]
