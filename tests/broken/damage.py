"""Seeded damage to a file: to the values of a JSON document, or to its bytes."""

from __future__ import annotations

import json
from random import Random
from typing import Any

ABSURD: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 2**31, 2**32, 2**62, 10**400, 0.5, -1e308, float("inf"), float("nan"), "", "x", "0",
    "\ud800", "\u0000", "中" * 5000, [], [[]], {}, {"x": {}}, ["x", 1], {"content": 5}, [None] * 1000,
)  # fmt: skip
JUNK = (
    b"\xff",
    b"\x00",
    b"\xed\xa0\x80",
    b"}",
    b"]",
    b'"',
    b",",
    b"\\",
    b"\xef\xbb\xbf",
    b"\x85",
    b"1e999",
    b"[" * 5000,
)


def damaged_values(text: str, random: Random) -> str:
    """The JSON text with one to three places changed: replaced, left out, doubled, exchanged or renamed."""
    document = json.loads(text)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        holder, key = _place(document, random)
        if holder is None:
            document = random.choice(ABSURD)
            break
        _change(holder, key, random)
    return json.dumps(document, ensure_ascii=random.random() < 0.5)


def damaged_bytes(data: bytes, random: Random) -> bytes:
    """The bytes with one piece cut, overwritten, put in, doubled or turned into another encoding."""
    place = random.randrange(len(data) + 1)
    end = min(len(data), place + random.choice((1, 2, 16, 256)))
    kind = random.randrange(7)
    if kind == 0:
        return data[:place]
    if kind == 1:
        return data[:place] + bytes(random.randrange(256) for _ in range(end - place)) + data[end:]
    if kind == 2:
        return data[:place] + random.choice(JUNK) + data[place:]
    if kind == 3:
        return data[:place] + data[place:end] * 2 + data[end:]
    if kind == 4:
        return data.decode("utf-8", "replace").encode(random.choice(("utf-16", "utf-32", "gb18030")))
    if kind == 5:
        return data + random.choice((data, *JUNK))
    return data[:place] + data[end:]


def _place(document: Any, random: Random) -> tuple[Any, Any]:
    """A random holder and a key in it; upper levels as often as the many places deep in a vocabulary."""
    holder, key, node = None, None, document
    while isinstance(node, (dict, list)) and node and (holder is None or random.random() < 0.75):
        holder, key = node, random.choice(list(node) if isinstance(node, dict) else range(len(node)))
        node = node[key]
    return holder, key


def _change(holder: Any, key: Any, random: Random) -> None:
    kind = random.randrange(8)
    other = random.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
    if kind == 0:
        del holder[key]
    elif kind == 1:
        holder[key], holder[other] = holder[other], holder[key]
    elif kind == 2:
        holder[key] = holder[other]
    elif kind == 3 and isinstance(holder, dict):
        holder[random.choice(("", "x", "id", "type"))] = holder.pop(key)
    elif kind == 3:
        holder.insert(key, holder[other])
    elif kind == 4:
        nested: Any = holder[key]
        for _ in range(random.choice((1, 3, 200))):
            nested = [nested] if random.random() < 0.5 else {"x": nested}
        holder[key] = nested
    else:
        holder[key] = random.choice(ABSURD)
