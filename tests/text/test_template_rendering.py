"""Chat templates give the text that transformers gives: compared with the installed release and, for what later ones
added, with what those give (5.24, written down here)."""

from __future__ import annotations

import itertools
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from atb_models.errors import RequestError
from atb_models.text.chat.template import ChatTemplate
from atb_models.text.tokenizer import load_tokenizer
from tests.text.test_tokenizer_chat import load

HEADERS = Path(__file__).resolve().parents[3] / "shared" / "headers"
CHATS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "Hi 你好"}],
    [{"role": "system", "content": " Be brief.\n"}, {"role": "user", "content": "<b>\"a\" & 'b'</b>"}],
    [
        {"role": "user", "content": "Who?"},
        {"role": "assistant", "content": "Me,\r\nme"},
        {"role": "user", "content": "  You?\u2028 "},
    ],
]
EACH = "{% for message in messages %}"
# What 4.36 knows. The blanks and line ends within are what is tested.
SOURCES = {
    "brackets": EACH + "[{{ message['role'] }}]{{ message.content }}{% endfor %}{{ eos_token }}",
    "roles as they are": EACH + "{{ '<|' + message.role|upper + '|>' ~ message['content']|trim }}\n{% endfor %}\n",
    "special tokens": "{{ bos_token }}{{ pad_token }}{{ eos_token + unk_token|default('-', true) }}{{ sep_token }}",
    "more special tokens": "{{ additional_special_tokens | join(',') }}{{ additional_special_tokens | length }}",
    "lines and indents": EACH + "\n    {% if loop.first %}\n  first\n    "
    "{% else %}\n  next\n    {% endif %}\n{% endfor %}\n end\n",
    "minus signs": EACH + "\n  {%- if loop.last -%}\n  {{- message.content }}\n  {%- endif %}\n{%- endfor %}\n\n",
    "plus signs": "  {%+ if true +%}\n x {%+ endif %}\n y",
    "comments": "a{# no text #}\n b {#- nor this -#} c\n{# \n #}\nd",
    "raw": "{% raw %}{{ messages }}{% endraw %}\n{{ '{{' }}",
    "windows line ends": EACH + "\r\n{{ message.content }}\r\n{% endfor %}\r\nend\r\n",
    "generation prompt": "{% if add_generation_prompt %}go{% else %}stop{% endif %}",
    "no such name": "[{{ nothing }}{{ messages[0].nothing }}{% if nothing is defined %}x{% endif %}]",
    "namespace": "{% set ns = namespace(n=0, s='') %}" + EACH +
    "{% set ns.n = ns.n + message.content|length %}{% endfor %}{{ ns.n }}",
    "scopes of set": "{% set x = 1 %}" + EACH + "{% set x = 2 %}{% endfor %}{{ x }}",
    "system taken out": "{% if messages[0].role == 'system' %}{% set first = messages[0].content %}"
    "{% set rest = messages[1:] %}"
    "{% else %}{% set first = '' %}{% set rest = messages %}{% endif %}{{ first }}|"
    "{% for m in rest %}{{ m.content }}{% endfor %}",
    "macro": "{% macro turn(m, sep='#') %}{{ m.role }}{{ sep }}{{ caller() if caller else '' }}"
    "{% endmacro %}" + EACH + "{{ turn(message) }}{% endfor %}",
    "call": "{% macro wrap() %}<{{ caller() }}>{% endmacro %}{% call wrap() %}{{ messages[0].content }}{% endcall %}",
    "filter block": "{% filter upper %}{{ messages[0].content }}{% endfilter %}",
    "set block": "{% set text %}{{ messages[0].content }}{% endset %}{{ text }}{{ text|length }}",
    "loop": EACH + "{{ loop.index0 }}{{ loop.revindex }}{{ loop.cycle('a', 'b') }}"
    "{{ loop.previtem.role }}{{ loop.nextitem is defined }}{% endfor %}",
    "for if else": "{% for m in messages if m.role == 'assistant' %}{{ m.content }}{% else %}none{% endfor %}",
    "selectattr": "{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | join('/') }}",
    "slices and strings": "{{ messages[-1]['content'][::-1] }}{{ messages[0].content.split(' ')[0] }}"
    "{{ 'a%s' % 1 }}{{ 'x' in messages[0].content }}",
    "get and items": EACH + "{{ message.get('role', '?') }}{% for k, v in message.items() %}"
    "{{ k }}={{ v }};{% endfor %}{% endfor %}",
    "numbers and logic": "{{ 7 // 2 }}{{ 7 % 4 }}{{ 2 ** 3 }}{{ 1 if messages|length > 1 else 0 }}"
    "{{ not messages }}{{ none }}{{ true }}",
    "dict and list": "{% set m = {'a': [1, 2.5, none], 'b': {'c': true}} %}"
    "{{ m }}{{ m.a[1] }}{{ m['b']['c'] }}{{ m|length }}",
    "tests": "{{ messages is iterable }}{{ messages[0].content is string }}"
    "{{ messages is mapping }}{{ nothing is none }}{{ 3 is odd }}",
    "html is left alone": "{{ messages[-1].content }}{{ messages[-1].content | safe }}{{ '<b>' | e }}",
    "whitespace filters": "{{ messages[0].content | replace('i', 'o') | indent(2, true) }}"
    "{{ ' a  b ' | trim }}{{ 'a b' | title }}",
    "do is no tag": "{% do messages.append(1) %}",
    "refusal": EACH + "{% if message.role == 'system' %}"
    "{{ raise_exception('no system, ' ~ loop.index) }}{% endif %}{% endfor %}ok",
    "messages cannot be changed": "{{ messages.append(1) }}",
    "dunder": "{{ messages.__class__ }}",
    "dunder by filter": "{{ messages | attr('__class__') }}",
    "format cannot reach in": "{{ '{0.__class__}'.format(messages) }}",
    "too long a range": "{{ range(1000000) | length }}",
    "division by zero": "{{ 1 / (messages|length - messages|length) }}",
    "wrong types": "{{ messages[0].content + 1 }}",
    "attribute of nothing": "{{ nothing.more }}",
    "call of nothing": "{{ nothing() }}",
    "no such filter": "{{ messages | nothing }}",
    "unclosed": EACH,
    "import": "{% include 'x' %}",
}  # fmt: skip


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    load(folder, "unused", settings={"additional_special_tokens": ["<a>", "<b>"]})
    return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SOURCES)
def test_same_text_as_transformers(theirs: Any, name: str) -> None:
    ours = ChatTemplate(SOURCES[name], theirs.special_tokens_map, "it")
    for chat, prompt in itertools.product(CHATS, (True, False)):
        try:
            expected = theirs.apply_chat_template(
                chat, chat_template=SOURCES[name], tokenize=False, add_generation_prompt=prompt
            )
        except Exception as error:
            with pytest.raises(RequestError) as refused:
                ours.render(chat, add_generation_prompt=prompt)
            assert str(refused.value).endswith(str(error))
        else:
            assert ours.render(chat, add_generation_prompt=prompt) == expected


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["deepseek-moe-16b-chat", "qwen1.5-moe-a2.7b-chat"])
def test_published_templates_give_the_same_text(name: str) -> None:
    from transformers import PreTrainedTokenizerFast  # 4.36 does not know the class of Qwen's tokenizer

    if not (HEADERS / name).is_dir():
        pytest.skip(f"{HEADERS / name} is absent: the real tokenizers are not part of the project")
    ours = load_tokenizer(HEADERS / name)
    theirs = PreTrainedTokenizerFast.from_pretrained(str(HEADERS / name), local_files_only=True)
    assert ours is not None and theirs.chat_template
    for chat, prompt in itertools.product(CHATS, (True, False)):
        expected = theirs.apply_chat_template(chat, tokenize=False, add_generation_prompt=prompt)
        assert ours.render_chat(chat, prompt) == expected
        assert ours.apply_chat_template(chat, prompt) == theirs.apply_chat_template(chat, add_generation_prompt=prompt)


TOOLS = [{"type": "function", "function": {"name": "今天", "parameters": {"b": 1, "a": "<'&"}}}]
PARTS = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
CALL = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}]}
LATER: list[tuple[str, dict[str, Any], str]] = [
    ("{% if tools is not none %}T{% endif %}{% if documents is none %}D{% endif %}.", {}, "D."),
    ("{% if tools %}{{ tools[0].function.name }}{% endif %}", {"tools": TOOLS}, "今天"),
    ("{{ tools | tojson }}", {"tools": TOOLS[0]["function"]["parameters"]}, '{"b": 1, "a": "<\'&"}'),
    ("{{ tools | tojson(indent=2) }}", {"tools": {"b": [1]}}, '{\n  "b": [\n    1\n  ]\n}'),
    ("{{ tools | tojson(true) }}", {"tools": "你"}, '"\\u4f60"'),
    ("{{ tools | tojson(sort_keys=true, separators=(',', ':')) }}", {"tools": {"b": 1, "a": 2}}, '{"a":2,"b":1}'),
    ("{{ tools | tojson(ensure_ascii=False, indent=none) }}", {"tools": "你"}, '"你"'),
    ("{{ enable_thinking | default(true) }}", {"enable_thinking": False}, "False"),
    ("{{ bos_token }}", {"bos_token": "<mine>"}, "<mine>"),
    ("a{% generation %}b{{ messages[0].content }}{% endgeneration %}c", {}, "abHic"),
    ("{% generation %}\n  b\n{% endgeneration %}\nc", {}, "  b\nc"),
    ("{%- generation -%} b {%- endgeneration -%} c", {}, "bc"),
    ("{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}", {}, "21"),
    (EACH + "{% generation %}{{ loop.index }}{{ message.content }}{% endgeneration %}{% endfor %}", {}, "1Hi"),
    ("{% for i in range(9) %}{% if i == 1 %}{% continue %}{% elif i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}",
     {}, "02"),
    ("{{ strftime_now('%Y') }}", {}, str(datetime.now().year)),
]  # fmt: skip


@pytest.mark.parametrize(("source", "variables", "text"), LATER)
def test_same_text_as_later_releases(source: str, variables: dict[str, Any], text: str) -> None:
    template = ChatTemplate(source, {"bos_token": "<s>"}, "it")
    assert template.render([{"role": "user", "content": "Hi"}], **variables) == text


def test_the_date_is_todays() -> None:
    before = datetime.now().strftime("%d %b %Y")
    shown = ChatTemplate("{{ strftime_now('%d %b %Y') }}", {}, "it").render(CHATS[0])
    assert shown in (before, datetime.now().strftime("%d %b %Y"))


LOOKS_INTO = (
    EACH + "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for p in message['content'] %}({{ p.text }}){% endfor %}{% endif %}{% endfor %}"
)
BY_NAME = "{% set content = messages[0].content %}{% for p in content %}({{ p.text }}){% endfor %}"


@pytest.mark.parametrize("source", [LOOKS_INTO, BY_NAME])
def test_parts_are_the_templates_where_it_looks_into_them(source: str) -> None:
    image = {"type": "image", "image": "x"}
    template = ChatTemplate(source, {}, "it")
    assert template.render([{"role": "user", "content": [*PARTS, image]}]) == "(one)(two)()"


def test_parts_of_text_are_joined_for_a_template_that_takes_text() -> None:
    template = ChatTemplate(EACH + "{{ message.content }}{% endfor %}", {}, "it")
    assert template.render([{"role": "user", "content": PARTS}]) == "onetwo"
    for content in ([*PARTS, {"type": "image"}], ["one"], [], [{"type": "text", "text": 1}]):
        with pytest.raises(RequestError, match="message 0 has content of type list, but must have text"):
            template.render([{"role": "user", "content": content}])


def test_calls_of_tools_need_no_content_where_the_template_shows_them() -> None:
    source = (
        EACH
        + "{{ message.content }}{% if message.tool_calls %}{{ message.tool_calls | tojson }}{% endif %}{% endfor %}"
    )
    assert ChatTemplate(source, {}, "it").render([CALL]) == '[{"function": {"name": "f", "arguments": {"x": 1}}}]'
    with pytest.raises(RequestError, match="message 0 has no content"):
        ChatTemplate(EACH + "{{ message.content }}{% endfor %}", {}, "it").render([CALL])


@pytest.mark.parametrize(
    ("source", "message", "text"),
    [
        (EACH + "<{{ message.role }}>{% endfor %}", {"role": "tool", "content": ""}, "<tool>"),
        ("{{ messages | tojson }}", {"role": "x", "content": "y", "z": 1}, '[{"role": "x", "content": "y", "z": 1}]'),
        (EACH + "{{ message | items | list | length }}{% endfor %}", {"role": "user", "content": "", "z": 1}, "3"),
        (EACH + "{{ message.get('name') }}{% endfor %}", {"role": "user", "content": "", "name": "Bo"}, "Bo"),
        (EACH + "{{ {'tool': 'T'}[message.role] }}{% endfor %}", {"role": "tool", "content": ""}, "T"),
        (EACH + "{{ message.content }}{% endfor %}", {"role": "user", "content": "a", "name": None}, "a"),
    ],
)  # fmt: skip
def test_what_a_template_shows_is_let_through(source: str, message: dict[str, Any], text: str) -> None:
    assert ChatTemplate(source, {}, "it").render([message]) == text


@pytest.mark.parametrize(
    ("source", "message", "said"),
    [
        (EACH + "{{ 1 if message.role == 'user' }}{{ message.content }}{% endfor %}", {"role": "tool"}, "role 'tool'"),
        (EACH + "{{ message.content }}{% endfor %}", {"role": "user", "name": "Bo"}, "name, which it does not use"),
        (EACH + "{{ message.content | tojson }}{% endfor %}", {"role": "user", "z": 1}, "z, which it does not use"),
        (EACH + "{{ message.content }}{% endfor %}", {"role": ["user"]}, "the role"),
    ],
)  # fmt: skip
def test_what_a_template_passes_over_is_refused(source: str, message: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        ChatTemplate(source, {}, "it").render([{"content": "", **message}])
