"""Malformed requests, made from a seed: a good body of each form with one thing in it that no service should take."""

from __future__ import annotations

import json
import random
import string
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

VOCABULARY, LONGEST = 2496, 8192  # of the embedded checkpoint: tokens, and those that a request can have


@dataclass(frozen=True)
class Malformed:
    """A request that must be refused. names: one of them is in the message."""

    path: str
    body: bytes
    names: tuple[str, ...]
    content_type: str = "application/json"


HUGE = (10**400, -(10**400), 1e308, -1e308, 2**64, -(2**70))
NO_NUMBERS = ("1", "NaN", "", True, [], {}, [1], {"a": 1})
# By kind of field, values that none of its kind takes.
BAD: dict[str, tuple[Any, ...]] = {
    "text": (3, 0.5, True, [3], {"a": "b"}),
    "prompt": (3, 0.5, True, {"a": "b"}, [], [True], ["a", 1], [1, "a"], [[5], "a"], [[]], [-1]),
    "rivals": (-1, 21, 0.5, *HUGE, *NO_NUMBERS),
    "yes or no": (1, 0, 0.5, "true", "", [], {}, [True]),
    "count": (0, -1, 1.5, *HUGE, *NO_NUMBERS),
    "number": (-1.5, *NO_NUMBERS),
    "share": (-0.1, 1.1, 1e308, -(10**400), *NO_NUMBERS),
    "penalty": (2.5, -3, *HUGE, *NO_NUMBERS),
    "seed": (0.5, 10**400, 1e308, *NO_NUMBERS),
    "stops": (3, True, {"a": 1}, [3], [""], ["a", None], [["a"]], ["x"] * 65),
    "token ids": (3, "5", [-1], [0.5], ["5"], [True], [[[5]]], [2**31], [10**400], {"a": 1}),
    "off": (True, 1, 0.5, "yes", [1], {"a": 1}),
    "one": (0.5, 2, "1", [1], {"a": 1}),
    "nothing": (1, "x", [1], {"a": 1}),
}
OPENAI = {
    "max_tokens": "count", "temperature": "number", "top_p": "share", "min_p": "share", "seed": "seed", "stop": "stops",
    "presence_penalty": "penalty", "frequency_penalty": "penalty", "ignore_eos": "yes or no", "n": "count",
    "stop_token_ids": "token ids", "stream": "yes or no", "use_beam_search": "off", "length_penalty": "one",
    "user": "text", "model": "text", "min_tokens": "one", "bad_words": "nothing", "metadata": "nothing",
}  # fmt: skip
TGI = {
    "max_new_tokens": "count", "temperature": "number", "top_p": "share", "seed": "seed", "details": "yes or no",
    "frequency_penalty": "penalty", "watermark": "off", "typical_p": "one", "do_sample": "yes or no", "n": "one",
}  # fmt: skip
USER = {"role": "user", "content": "Who is the CEO of Google?"}


@dataclass(frozen=True)
class Form:
    """fields: of the body by place, "parameters.top_p" for one in an object of it, with their kind. prompt: the field
    without which there is no request."""

    path: str
    good: dict[str, Any]
    prompt: str
    fields: dict[str, str]


def _inside(name: str, fields: dict[str, str]) -> dict[str, str]:
    return {f"{name}.{field}": kind for field, kind in fields.items()}


FORMS = (
    Form(
        "/v1/chat/completions", {"messages": [USER, USER], "max_tokens": 1}, "messages",
        OPENAI | {"messages.1.role": "text", "messages.0.content": "text", "messages.1.tool_calls": "nothing",
                  "top_logprobs": "rivals", "stream_options.include_usage": "yes or no", "tools": "nothing",
                  "response_format.type": "text", "logprobs": "yes or no"},
    ),
    Form("/v1/completions", {"prompt": "Who", "max_tokens": 1}, "prompt",
         OPENAI | {"prompt": "prompt", "echo": "yes or no", "add_special_tokens": "yes or no", "suffix": "text"}),
    Form("/generate", {"prompt": "Who", "max_tokens": 1}, "prompt",
         {name: kind for name, kind in OPENAI.items() if name not in ("user", "metadata")}),
    Form("/generate", {"inputs": "Who"}, "inputs", {"inputs": "text"} | _inside("parameters", TGI)),
    Form("/generate_stream", {"inputs": "Who"}, "inputs", {"inputs": "text"} | _inside("parameters", TGI)),
    Form("/", {"inputs": "Who"}, "inputs", {"inputs": "text"} | _inside("parameters", TGI)),
    Form("/", {"prompt": "Who", "max_length": 1}, "prompt", {"max_length": "count", "history": "nothing"}),
    Form("/infer", {"inputs": "Who"}, "inputs", {"inputs": "text"} | _inside("parameters", TGI)),
    Form("/infer_token", {"input_id": [5, 6]}, "input_id", {"input_id": "token ids"} | _inside("parameters", TGI)),
    Form("/v2/models/demo/generate", {"text_input": "Who"}, "text_input",
         {"text_input": "text"} | _inside("parameters", TGI)),
    Form("/tokenize", {"prompt": "Who"}, "prompt",
         {"prompt": "text", "add_special_tokens": "yes or no", "return_token_strs": "yes or no", "model": "text"}),
    Form("/detokenize", {"tokens": [5]}, "tokens", {"tokens": "token ids", "model": "text"}),
    Form("/v1/tokenizer", {"inputs": "Who"}, "inputs", {"inputs": "text", "do_decode": "yes or no"}),
)  # fmt: skip


def malformed(seed: int, count: int) -> Iterator[Malformed]:
    """So many requests, the same for a seed."""
    chance = random.Random(seed)
    kinds = [_bad_value] * 10 + [_unknown_field] * 4 + [_nothing_asked, _no_json, _no_json_type, _other_model]
    kinds += [_half_a_character] * 2 + [_impossible_ids] * 2 + [_too_long, _contradiction, _very_many]
    for _ in range(count):
        yield chance.choice(kinds)(chance)


def _as_json(body: Any) -> bytes:
    return json.dumps(body).encode()


def _set(body: dict[str, Any], place: str, value: Any) -> dict[str, Any]:
    """A copy of the body with this value at a place such as messages.0.content."""
    body = json.loads(json.dumps(body))
    at: Any = body
    *parts, last = place.split(".")
    for part in parts:
        at = at[int(part)] if isinstance(at, list) else at.setdefault(part, {})
    at[last] = value
    return body


def _bad_value(chance: random.Random) -> Malformed:
    form = chance.choice(FORMS)
    field, kind = chance.choice(list(form.fields.items()))
    return Malformed(form.path, _as_json(_set(form.good, field, chance.choice(BAD[kind]))), (field,))


def _unknown_field(chance: random.Random) -> Malformed:
    form = chance.choice(FORMS)
    names = ["".join(chance.choices(string.ascii_letters + "_-é你 ", k=chance.randrange(1, 30))), "str", "list", "int"]
    name = f"x{chance.choice(names)}" if chance.random() < 0.8 else chance.choice(names[1:])
    objects = [field.rpartition(".")[0] for field in form.fields if "." in field]
    places = ["", *(f"{name}." for name in objects if name != "response_format")]  # it has a field that is needed
    place = chance.choice(places) + name
    value = chance.choice((1, "x", False, [1], {"a": 1}))
    return Malformed(form.path, _as_json(_set(form.good, place, value)), (place,))


def _nothing_asked(chance: random.Random) -> Malformed:
    form = chance.choice(FORMS)
    body = {name: value for name, value in form.good.items() if name != form.prompt}
    if chance.random() < 0.5:
        body[form.prompt] = None
    return Malformed(form.path, _as_json(body), (form.prompt,))


def _no_json(chance: random.Random) -> Malformed:
    form = chance.choice(FORMS)
    data = _as_json(form.good)
    ways: list[Callable[[], bytes]] = [
        lambda: data[: chance.randrange(1, len(data))], lambda: b"", lambda: data + b"}", lambda: b"\xff" + data,
        lambda: data.replace(b":", b"=", 1), lambda: b"[" * 50_000, lambda: data[:-1] + b", 'a': 1}",
        lambda: data[:-1] + b', "seed": 1' + b"0" * 5000 + b"}", lambda: data[:-1] + b', "top_p": NaN}',
    ]  # fmt: skip
    return Malformed(form.path, chance.choice(ways)(), ("JSON", "body", form.prompt, "seed", "top_p"))


def _no_json_type(chance: random.Random) -> Malformed:
    form = chance.choice(FORMS)
    kind = chance.choice(("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"))
    return Malformed(form.path, _as_json(form.good), ("Content-Type",), kind)


def _other_model(chance: random.Random) -> Malformed:
    form = chance.choice([form for form in FORMS if "model" in form.fields])
    return Malformed(form.path, _as_json(form.good | {"model": f"m{chance.random()}"}), ("model",))


def _half_a_character(chance: random.Random) -> Malformed:
    form = chance.choice([form for form in FORMS if isinstance(form.good.get(form.prompt), str)])
    text = "Who\ud800" + "a" * chance.choice((0, 10, 5000))
    return Malformed(form.path, _as_json(form.good | {form.prompt: text}), (form.prompt,))


def _impossible_ids(chance: random.Random) -> Malformed:
    fields = {"/v1/completions": "prompt", "/infer_token": "input_id", "/detokenize": "tokens"}
    path, field = chance.choice(list(fields.items()))
    ids = [5, VOCABULARY + chance.randrange(10_000)]
    return Malformed(path, _as_json({field: ids}), (field,))


def _too_long(chance: random.Random) -> Malformed:
    text, ids = "a b " * LONGEST, [5] * (LONGEST + chance.randrange(3 * LONGEST))
    path, field, value = chance.choice((
        ("/v1/completions", "prompt", ids), ("/infer_token", "input_id", ids), ("/generate", "inputs", text),
        ("/v1/completions", "prompt", text * 40), ("/v2/models/demo/generate", "text_input", text),
        ("/v1/chat/completions", "messages", [USER | {"content": text}]), ("/tokenize", "prompt", text * 40),
    ))  # fmt: skip
    return Malformed(path, _as_json({field: value}), (field,))


def _contradiction(chance: random.Random) -> Malformed:
    chat, completion = FORMS[0], FORMS[1]
    form, fields, name = chance.choice((
        (chat, {"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens"),
        (chat, {"top_logprobs": 2}, "top_logprobs"),
        (chat, {"stream_options": {"include_usage": True}}, "stream_options"),
        (chat, {"tools": [{"type": "function"}], "tool_choice": "auto"}, "tools"),
        (completion, {"n": 2, "best_of": 3}, "best_of"),
        (completion, {"max_tokens": 0}, "max_tokens"),
        (completion, {"prompt": ["a"] * 900}, "prompt"),
        (FORMS[3], {"prompt": "Who"}, "prompt"),
        (FORMS[7], {"input_id": [5]}, "input_id"),
        (FORMS[10], {"messages": [USER]}, "messages"),
    ))  # fmt: skip
    return Malformed(form.path, _as_json(form.good | fields), (name,))


def _very_many(chance: random.Random) -> Malformed:
    form = chance.choice(FORMS)
    deep: Any = "Who"
    for _ in range(chance.randrange(10, 800)):
        deep = [deep]
    body, names = chance.choice((
        ({f"field{i}": i for i in range(chance.randrange(257, 3000))}, ("fields", "field", form.prompt)),
        ({form.prompt: deep}, (form.prompt, "JSON")),
    ))  # fmt: skip
    return Malformed(form.path, _as_json(form.good | body), names)
