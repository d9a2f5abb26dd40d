"""Conversations to prompts: the checkpoint's template, the user's, or the family's documented plain format."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import tiny
from tokenizers import AddedToken, models, pre_tokenizers
from tokenizers import Tokenizer as JsonTokenizer

from atb_models.errors import ConfigError, RequestError
from atb_models.models.families import FAMILIES
from atb_models.text.chat.template import ChatTemplate
from atb_models.text.tokenizer import Tokenizer, load_tokenizer

HEADERS = Path(__file__).resolve().parents[3] / "shared" / "headers"
SETTINGS = {"tokenizer_class": "LlamaTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "unk_token": None}
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi 你好"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Who?"},
]
# contract: bos; "User: " text and two newlines; "Assistant: " text and eos; system text and two newlines.
DEEPSEEK_TEXT = "<s>Be brief.\n\nUser: Hi 你好\n\nAssistant: Hello</s>User: Who?\n\nAssistant:"
USER = [{"role": "user", "content": "Hi"}]


def load(
    folder: Path,
    template: Any = None,
    given: str | None = None,
    *,
    settings: dict[str, Any] | None = None,
    **config: Any,
) -> Tokenizer:
    vocab = {char: i for i, char in enumerate(pre_tokenizers.ByteLevel.alphabet())}
    tokenizer = JsonTokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in ("<s>", "</s>")])
    tokenizer.save(str(folder / "tokenizer.json"))
    chosen = SETTINGS | (settings or {}) | ({} if template is None else {"chat_template": template})
    (folder / "tokenizer_config.json").write_text(json.dumps(chosen))
    (folder / "config.json").write_text(json.dumps({**tiny.DEEPSEEK, **config}))
    loaded = load_tokenizer(folder, given)
    assert loaded is not None
    return loaded


def test_plain_format_of_the_family_is_used_and_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = load(tmp_path)
    with caplog.at_level(logging.INFO):
        assert tokenizer.render_chat(CHAT) == DEEPSEEK_TEXT
        assert tokenizer.render_chat(CHAT[:2], add_generation_prompt=False) == "<s>Be brief.\n\nUser: Hi 你好\n\n"
    assert len(caplog.records) == 1 and "plain format" in caplog.text


CHATML = "".join(f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n" for message in CHAT)
INSTRUCTED = "<s>[INST] Be brief.\n\nHi 你好 [/INST] Hello</s>[INST] Who? [/INST]"
# Text of CHAT, and what asks for an answer.
FORMATS = {
    "llama": ("<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi 你好 [/INST] Hello </s><s>[INST] Who? [/INST]", ""),
    "mistral": (INSTRUCTED, ""),
    "mixtral": (INSTRUCTED, ""),
    "qwen2": (CHATML, "<|im_start|>assistant\n"),
    "qwen3": (CHATML, "<|im_start|>assistant\n"),
    "qwen3_moe": (CHATML, "<|im_start|>assistant\n"),
    "olmoe": (
        "<s><|system|>\nBe brief.\n<|user|>\nHi 你好\n<|assistant|>\nHello</s>\n<|user|>\nWho?\n",
        "<|assistant|>\n",
    ),
}


@pytest.mark.parametrize("family", FORMATS)
def test_plain_formats_of_later_families(family: str, tmp_path: Path) -> None:
    tokenizer, (text, asked) = load(tmp_path, model_type=family), FORMATS[family]
    assert tokenizer.render_chat(CHAT) == text + asked
    assert tokenizer.render_chat(CHAT, add_generation_prompt=False) == text


def test_plain_format_of_qwen3_can_leave_the_thought_out(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, model_type="qwen3")
    thoughtless = "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    assert tokenizer.render_chat(CHAT, enable_thinking=False) == CHATML + thoughtless
    assert tokenizer.render_chat(CHAT, enable_thinking=True) == CHATML + "<|im_start|>assistant\n"


def test_plain_format_of_llama_3_is_told_by_its_bos(tmp_path: Path) -> None:
    headed = [f"<|start_header_id|>{one['role']}<|end_header_id|>\n\n{one['content']}<|eot_id|>" for one in CHAT]
    tokenizer = load(tmp_path, model_type="llama", settings={"bos_token": "<|begin_of_text|>"})
    assert tokenizer.render_chat(CHAT, add_generation_prompt=False) == "".join(["<|begin_of_text|>", *headed])
    assert tokenizer.render_chat(CHAT).endswith("<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n")


def test_olmoe_ends_with_eos_after_a_last_answer(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, model_type="olmoe")
    assert tokenizer.render_chat(CHAT[:3], add_generation_prompt=False).endswith("<|assistant|>\nHello</s>")


def test_one_bos_only(tmp_path: Path) -> None:
    tokenizer = load(tmp_path)
    ids = tokenizer.apply_chat_template(USER)
    assert ids == tokenizer.encode("User: Hi\n\nAssistant:")
    assert tokenizer.bos_token_id is not None and ids.count(tokenizer.bos_token_id) == 1


def test_template_of_the_checkpoint(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m['content'] }}{% endfor %}")
    assert tokenizer.render_chat(USER) == "<s>[user]Hi"
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}]
    assert load(tmp_path, named).render_chat(USER) == "yes"
    (tmp_path / "chat_template.jinja").write_text("file {{ eos_token }}")
    assert load(tmp_path, "no").render_chat(USER) == "file </s>"


def test_template_of_the_user_wins(tmp_path: Path) -> None:
    file = tmp_path / "my template"
    file.write_text("{{ messages | length }} from a file")
    assert load(tmp_path, "no", str(file)).render_chat(CHAT) == "4 from a file"
    literal = load(tmp_path, "no", "{{ messages[0].content | tojson }}")
    assert literal.render_chat([{"role": "user", "content": "你"}]) == '"你"'


def test_template_that_is_neither_file_nor_jinja(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'/no/such.jinja' is neither a file nor a Jinja template"):
        load(tmp_path, given="/no/such.jinja")
    with pytest.raises(ConfigError, match="the given chat template is no valid Jinja template, line 1: .*endfor"):
        load(tmp_path, given="{% for m in messages %}")


def test_template_runs_in_a_sandbox(tmp_path: Path) -> None:
    escape = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(RequestError, match="cannot render this conversation: access to attribute '__class__'"):
        load(tmp_path, escape).render_chat(USER)


def test_template_that_refuses_a_conversation(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="cannot render this conversation: roles must alternate"):
        load(tmp_path, "{{ raise_exception('roles must alternate') }}").render_chat(USER)


def test_no_template_anywhere(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no chat template; give one with --chat_template"):
        load(tmp_path, model_type="unheard").render_chat(USER)


@pytest.mark.parametrize(
    ("conversation", "message"),
    [
        ([], "must be a list of messages, at least one"),
        ("Hi", "must be a list of messages"),
        ({"role": "user", "content": "Hi"}, "must be a list of messages"),
        (["Hi"], "message 0 is str, but must have role and content"),
        ([{"content": "Hi"}], "message 0 has no role"),
        ([*USER, {}], "message 1 has no role and no content"),
        ([{"role": "robot", "content": "Hi"}], "message 0 has the role 'robot', but only system, user, assistant are"),
        ([{"role": "tool", "content": "Hi"}], "message 0 has the role 'tool'"),
        ([{"role": "user", "content": None}], "message 0 has content of type NoneType"),
        ([{"role": "user", "content": [{"type": "text"}]}], "message 0 has content of type list"),
        ([{"role": "user", "content": "Hi", "name": "Bo"}], "message 0 has name, which .* does not use"),
    ],
)
def test_malformed_conversations(tmp_path: Path, conversation: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        load(tmp_path).apply_chat_template(conversation)


def test_roles_and_keys_that_a_template_names_are_let_through(tmp_path: Path) -> None:
    template = "{% for m in messages %}{% if m.role == 'tool' %}{{ m['name'] }}: {% endif %}{{ m.content }}{% endfor %}"
    message = {"role": "tool", "content": "42", "name": "sum"}
    assert load(tmp_path, template).render_chat([message]) == "sum: 42"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["deepseek-moe-16b-chat", "deepseek-moe-16b-base"])
def test_real_deepseek_prompts(name: str) -> None:
    if not (HEADERS / name).is_dir():
        pytest.skip(f"{HEADERS / name} is absent: the real tokenizers are not part of the project")
    from transformers import AutoTokenizer

    ours = load_tokenizer(HEADERS / name)
    assert ours is not None
    text = DEEPSEEK_TEXT.replace("<s>", "<｜begin▁of▁sentence｜>").replace("</s>", "<｜end▁of▁sentence｜>")
    assert ours.render_chat(CHAT) == text
    chat = AutoTokenizer.from_pretrained(str(HEADERS / "deepseek-moe-16b-chat"), local_files_only=True)
    assert ours.apply_chat_template(CHAT) == chat.apply_chat_template(CHAT, add_generation_prompt=True)
    assert ours.apply_chat_template(CHAT).count(100000) == 1


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("role", ["User", "Assistant", "role", "content"])
def test_a_word_of_a_familys_format_is_no_role(family: str, role: str) -> None:
    """A message with such a role would be left out of the prompt or unknown to the model, and nobody would know."""
    tokens = {"bos_token": "", "eos_token": ""}
    template = ChatTemplate(FAMILIES[family].chat_template, tokens, "a format", is_fallback=True)
    with pytest.raises(RequestError, match=f"message 0 has the role '{role}'"):
        template.render([{"role": role, "content": "lost"}])


def test_a_role_that_the_template_compares_is_known() -> None:
    source = (
        "{% for m in messages %}{% if m.role == 'tool' or m.role in ['critic', 'user'] %}{{ m.content }}{% endif %}"
        "{% endfor %}"
    )
    template = ChatTemplate(source, {}, "a format")
    assert template.render([{"role": role, "content": role} for role in ("tool", "critic")]) == "toolcritic"
