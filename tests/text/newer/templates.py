"""Chat templates with what Qwen3's, Llama 3.1's and DeepSeek-V3's do, and what a newer transformers renders of them.

    NEWER/bin/python tests/text/newer/templates.py > tests/text/newer/rendered.json

NEWER: see reference.py. The templates are this project's own; each construct in them is one of the published ones.
"""

from __future__ import annotations

import json
import os
from typing import Any

# Reasoning: that of the last turn is shown, that of earlier ones is not; tools and their results; a switch.
QWEN = r"""
{%- macro turn(role, text) %}{{ '[' + role + '] ' + text + '[end]\n' }}{% endmacro %}
{%- if tools %}
    {{- '[tools]\n' }}
    {%- for tool in tools %}
        {{- tool | tojson }}
        {{- '\n' }}
    {%- endfor %}
{%- endif %}
{%- set ns = namespace(searching=true, asked=messages|length - 1) %}
{%- for m in messages[::-1] %}
    {%- set place = (messages|length - 1) - loop.index0 %}
    {%- if ns.searching and m.role == "user" and m.content is string and not(m.content.startswith('[result]')) %}
        {%- set ns.searching = false %}
        {%- set ns.asked = place %}
    {%- endif %}
{%- endfor %}
{%- for m in messages %}
    {%- set text = m.content if m.content is string else '' %}
    {%- if (m.role == "user") or (m.role == "system" and not loop.first) %}
        {{- turn(m.role, text) }}
    {%- elif m.role == "system" %}
        {{- text | trim ~ '\n' }}
    {%- elif m.role == "assistant" %}
        {%- set thought = '' %}
        {%- if m.reasoning_content is string %}
            {%- set thought = m.reasoning_content %}
        {%- elif '</think>' in text %}
            {%- set thought = text.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
            {%- set text = text.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {{- '[assistant] ' }}
        {%- if loop.index0 > ns.asked and (loop.last or (not loop.last and thought)) %}
            {{- '<think>' + thought.strip('\n') + '</think>' }}
        {%- endif %}
        {{- text }}
        {%- if m.tool_calls %}
            {%- for one in m.tool_calls %}
                {{- '' if loop.first and not text else '\n' }}
                {%- if one.function %}
                    {%- set one = one.function %}
                {%- endif %}
                {{- '[call ' ~ one.name ~ ' ' }}
                {{- one.arguments if one.arguments is string else one.arguments | tojson }}
                {{- ']' }}
            {%- endfor %}
        {%- endif %}
        {{- '[end]\n' }}
    {%- elif m.role == "tool" %}
        {{- '[user]' if loop.first or messages[loop.index0 - 1].role != "tool" }}
        {{- '\n[result] ' + text }}
        {{- '[end]\n' if loop.last or (messages[loop.index0 + 1].role != "tool") }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '[assistant] ' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think></think>' }}
    {%- endif %}
{%- endif %}"""

# Variables with a default, tools of the model's own, a first message taken out, arguments walked through.
LLAMA = r"""{{- bos_token }}
{%- if own_tools is defined %}{%- set tools = own_tools %}{%- endif %}
{%- if not with_user is defined %}{%- set with_user = true %}{%- endif %}
{%- if not date_string is defined %}
    {%- set date_string = strftime_now("%Y") | length ~ " digits" if strftime_now is defined else "no date" %}
{%- endif %}

{#- The system message comes first, #}
{%- if messages[0]['role'] == 'system' %}
    {%- set first = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set first = "" %}
{%- endif %}
{{- "(" + date_string + ")\n" + first }}
{%- if built_in is defined or tools is not none %}
    {{- "\ntools: " }}
{%- endif %}
{%- if built_in is defined %}
    {{- built_in | reject('equalto', 'python') | join(", ") + ";" }}
{%- endif %}
{%- if with_user and not tools is none %}
    {#- then the tools, before what the user says. #}
    {%- if messages | length == 0 %}
        {{- raise_exception("nobody asks for tools") }}
    {%- endif %}
    {%- set asked = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
    {%- for t in tools %}
        {{- t | tojson(indent=4) -}}
        {{- "\n\n" }}
    {%- endfor %}
    {{- asked + "|" }}
{%- endif %}
{%- for m in messages %}
    {%- if not (m.role == 'ipython' or m.role == 'tool' or 'tool_calls' in m) %}
        {{- m['role'] + ': ' + m['content'] | trim + '|' }}
    {%- elif 'tool_calls' in m %}
        {%- if not m.tool_calls|length == 1 %}
            {{- raise_exception("one call at a time") }}
        {%- endif %}
        {%- set one = m.tool_calls[0].function %}
        {%- if built_in is defined and one.name in built_in %}
            {{- one.name + ".call(" }}
            {%- for key, value in one.arguments | items %}
                {{- key + '="' + value + '"' }}
                {{- ", " if not loop.last }}
            {%- endfor %}
            {{- ")|" }}
        {%- else %}
            {{- '{"name": "' + one.name + '", "parameters": ' }}
            {{- one.arguments | tojson }}
            {{- "}|" }}
        {%- endif %}
    {%- elif m.content is mapping or m.content is iterable %}
        {{- "result: " + m.content | tojson + "|" }}
    {%- endif %}
{%- endfor %}
{{- 'assistant: ' if add_generation_prompt }}
"""

# A namespace of many attributes, None, calls whose arguments are text, reasoning cut off, no blank anywhere.
DEEPSEEK = r"""{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}
{%- if not thinking is defined -%}{%- set thinking = enable_thinking | default(false) -%}{%- endif -%}
{% set ns = namespace(calling=false, results=false, begun=false, system='', none_yet=true) %}
{%- for m in messages %}{%- if m['role'] == 'system' %}
{%- set ns.system = ns.system + ('' if ns.none_yet else '\n\n') + m['content'] %}{%- set ns.none_yet = false %}
{%- endif %}{%- endfor -%}
{{ bos_token }}{{ ns.system }}
{%- for m in messages %}
{%- if m['role'] == 'user' %}{%- set ns.results = false -%}{{'<｜U｜>' + m['content']}}{%- endif %}
{%- if m['role'] == 'assistant' and m['tool_calls'] is defined and m['tool_calls'] is not none %}
{%- set ns.calling = false -%}
{%- for one in m['tool_calls'] %}
{%- set text = one['type'] + '▁' + one['function']['name'] + '\n```json\n' + one['function']['arguments'] + '\n```' -%}
{%- if not ns.calling and m['content'] is none %}{{'<｜A｜><｜calls▁begin｜>' + text}}
{%- elif not ns.calling %}{{'<｜A｜>' + m['content'] + '<｜calls▁begin｜>' + text}}
{%- else %}{{'\n' + text}}{%- endif %}{%- set ns.calling = true -%}
{%- endfor %}{{'<｜calls▁end｜>' + eos_token}}
{%- elif m['role'] == 'assistant' %}
{%- if ns.results %}{{'<｜results▁end｜>' + m['content'] + eos_token}}{%- set ns.results = false -%}
{%- else %}{% set content = m['content'] %}
{%- if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}
{{- '<｜A｜>' + content + eos_token}}{%- endif %}
{%- endif %}
{%- if m['role'] == 'tool' %}{%- set ns.results = true -%}
{%- if not ns.begun %}{{'<｜results▁begin｜>' + m['content']}}{%- set ns.begun = true %}
{%- else %}{{'\n' + m['content']}}{%- endif %}{%- endif %}
{%- endfor -%}
{% if ns.results %}{{'<｜results▁end｜>'}}{% endif %}
{%- if add_generation_prompt and not ns.results %}{{'<｜A｜>' + ('<think>' if thinking else '</think>')}}{% endif %}"""

SOURCES = {"qwen": QWEN, "llama": LLAMA, "deepseek": DEEPSEEK}
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string", "description": "<城市> & 'more'"}}}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": PARAMETERS, "strict": False}}]


def call(arguments: Any) -> dict[str, Any]:
    return {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": arguments}}


SYSTEM, USER = {"role": "system", "content": " Be brief. "}, {"role": "user", "content": "Hi 你好 "}
FIELDS, TEXT = {"city": 'Paris "é" <b>', "unit": "C"}, '{"city": "Paris"}'
RESULT = {"role": "tool", "tool_call_id": "call_1", "name": "weather", "content": "sunny"}
THANKS = {"role": "user", "content": "Thanks"}
CHATS: dict[str, list[dict[str, Any]]] = {
    "one": [USER],
    "turns": [SYSTEM, USER, {"role": "assistant", "content": "Hello "}, THANKS],
    "two systems": [SYSTEM, {"role": "system", "content": "In Chinese."}, USER],
    "thought": [USER, {"role": "assistant", "content": "<think>\nhm\n</think>\n\nHello"}, THANKS],
    "reasoning": [USER, {"role": "assistant", "content": "Hello", "reasoning_content": "\nhm\n"}, THANKS],
    "reasoning last": [USER, {"role": "assistant", "content": "Hello", "reasoning_content": "\nhm\n"}],
    "call": [SYSTEM, USER, {"role": "assistant", "content": "", "tool_calls": [call(FIELDS)]}, RESULT],
    "call as text": [USER, {"role": "assistant", "content": None, "tool_calls": [call(TEXT)]}, RESULT, THANKS],
    "calls": [
        USER,
        {"role": "assistant", "content": "I look", "tool_calls": [call(TEXT), call(TEXT)], "reasoning_content": "hm"},
        RESULT,
        RESULT | {"content": "rain"},
        {"role": "assistant", "content": "Both."},
        THANKS,
    ],
}
VARIABLES: dict[str, dict[str, Any]] = {
    "plain": {},
    "tools": {"tools": TOOLS},
    "no thinking": {"enable_thinking": False},
    "thinking": {"enable_thinking": True, "tools": TOOLS},
    "own tools": {"own_tools": TOOLS, "date_string": "1 Jan 2025", "with_user": False},
    "built in": {"built_in": ["weather", "python", "search"]},
}


def main() -> None:
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE({"a": 0}, [])), **TOKENS)
    texts: dict[str, str | None] = {}
    for name, source in SOURCES.items():
        for title, chat in CHATS.items():
            for kind, variables in VARIABLES.items():
                options = {"add_generation_prompt": kind != "plain", "tokenize": False, **variables}
                try:
                    text = tokenizer.apply_chat_template(chat, chat_template=source, **options)
                except Exception:  # a template may refuse a chat, or fail
                    text = None
                texts[f"{name}, {title}, {kind}"] = text
    print(
        "{\n"
        + ",\n".join(f"{json.dumps(key)}: {json.dumps(text, ensure_ascii=False)}" for key, text in texts.items())
        + "\n}"
    )


if __name__ == "__main__":
    main()
