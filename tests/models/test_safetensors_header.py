"""The header of a safetensors file is taken where the format's own reader takes it, and refused where that refuses."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError, deserialize
from safetensors.torch import save, save_file

from atb_models.errors import CheckpointError
from atb_models.models.dtypes import readable
from atb_models.models.weights.checkpoint import open_checkpoint
from atb_models.models.weights.safetensors_header import _BITS, MOST_BYTES

A = '"dtype":"F32","shape":[2],"data_offsets":[0,8]'
B = '"dtype":"F32","shape":[1],"data_offsets":'
EMPTY = '"dtype":"F32","shape":[0],"data_offsets":'


def file_of(header: str | bytes, data: int = 8, length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else header.encode()
    return (len(raw) if length is None else length).to_bytes(8, "little") + raw + bytes(data)


def entry(fields: str, name: str = "a") -> str:
    return f'{{"{name}":{{{fields}}}}}'


def extra(value: str) -> str:
    return entry(f'{A},"x":{value}')


# header, or the whole file -> what is said of it; None: it is taken
CASES: dict[str, tuple[bytes, str | None]] = {
    "plain": (file_of(entry(A)), None),
    "spaces before": (file_of(" \n\t" + entry(A)), None),
    "spaces behind": (file_of(entry(A) + " \n\t "), None),
    "zero bytes behind": (file_of(entry(A) + "\0\0"), "not valid JSON"),
    "text behind": (file_of(entry(A) + "x"), "not valid JSON"),
    "byte order mark": (file_of("\ufeff" + entry(A)), "not valid JSON"),
    "no-break space": (file_of("\xa0" + entry(A)), "not valid JSON"),
    "no UTF-8": (file_of(b'{"a\xff":{' + A.encode() + b"}}"), "not valid JSON"),
    "single quotes": (file_of(entry(A).replace('"', "'")), "not valid JSON"),
    "comma too many": (file_of(f'{{"a":{{{A}}},}}'), "not valid JSON"),
    "empty": (file_of("", 0), "not valid JSON"),
    "list": (file_of("[]", 0), "no JSON object"),
    "null": (file_of("null", 0), "no JSON object"),
    "text": (file_of('"x"', 0), "no JSON object"),
    "no tensors": (file_of("{}", 0), None),
    "no tensors, a byte": (file_of("{}", 1), "1 bytes behind the last tensor"),
    "tensor twice": (file_of(f'{{"a":{{{B}[0,4]}},"a":{{{A}}}}}'), None),  # the last counts
    "field twice": (file_of(entry(f'"dtype":"F32",{A}')), "entry of tensor a is damaged"),
    "metadata": (file_of(f'{{"__metadata__":{{"a":"b","a":"c"}},"a":{{{A}}}}}'), None),
    "metadata null": (file_of(f'{{"__metadata__":null,"a":{{{A}}}}}'), None),
    "metadata twice": (file_of(f'{{"__metadata__":{{}},"__metadata__":{{}},"a":{{{A}}}}}'), "__metadata__ twice"),
    "metadata with a number": (file_of(f'{{"__metadata__":{{"a":1}},"a":{{{A}}}}}'), "no object of texts: {'a': 1}"),
    "metadata with null": (file_of(f'{{"__metadata__":{{"a":null}},"a":{{{A}}}}}'), "no object of texts"),
    "metadata a list": (file_of(f'{{"__metadata__":[],"a":{{{A}}}}}'), "no object of texts: []"),
    "further field": (file_of(extra('[1.5,{"y":null}]')), None),
    "further NaN": (file_of(extra("NaN")), "NaN is no JSON number"),
    "further -Infinity": (file_of(extra("-Infinity")), "-Infinity is no JSON number"),
    "further 1e400": (file_of(extra("1e400")), "number out of range"),
    "further 400 digits": (file_of(extra("9" * 400)), "number out of range"),
    "further 40 digits": (file_of(extra("9" * 40)), None),
    "further 5000 digits": (file_of(extra("9" * 5000)), "number out of range"),
    "further control character": (file_of(extra('"\x01"')), "not valid JSON"),
    "further half of a pair": (file_of(extra('"\\ud800"')), "not valid JSON"),
    "further 125 levels": (file_of(extra("[" * 125 + "]" * 125)), None),
    "further 126 levels": (file_of(extra("[" * 126 + "]" * 126)), "entry of tensor a is damaged"),
    "further 100000 levels": (file_of(extra("[" * 100_000 + "]" * 100_000)), "not valid JSON"),
    "name of a pair": (file_of(entry(A, "\\ud83d\\ude00")), None),
    "name of half a pair": (file_of(entry(A, "\\ud83d")), "not valid JSON"),
    "name of nothing": (file_of(entry(A, "")), None),
    "entry null": (file_of('{"a":null}'), "entry of tensor a is damaged: None"),
    "entry a list": (file_of('{"a":["F32",[2],[0,8]]}'), None),
    "entry a longer list": (file_of('{"a":["F32",[2],[0,8],1]}'), "entry of tensor a is damaged"),
    "type an object": (file_of('{"a":{"dtype":{"F32":null},"shape":[2],"data_offsets":[0,8]}}'), None),
    "type another object": (file_of(entry(A.replace('"F32"', '{"F32":{}}'))), "of no known type: {'F32': {}}"),
    "type a number": (file_of(entry(A.replace('"F32"', "9"))), "tensor a is of no known type: 9"),
    "type in small letters": (file_of(entry(A.replace("F32", "f32"))), "tensor a is of no known type: 'f32'"),
    "no type": (file_of('{"a":{"shape":[2],"data_offsets":[0,8]}}'), "entry of tensor a is damaged"),
    "no shape": (file_of('{"a":{"dtype":"F32","data_offsets":[0,8]}}'), "entry of tensor a is damaged"),
    "no offsets": (file_of('{"a":{"dtype":"F32","shape":[2]}}'), "entry of tensor a is damaged"),
    "size a fraction": (file_of(entry(A.replace("[2]", "[2.0]"))), "entry of tensor a is damaged"),
    "size true": (file_of(entry(A.replace("[2]", "[true,2]"))), "entry of tensor a is damaged"),
    "size negative": (file_of(entry(A.replace("[2]", "[-2,-1]"))), "entry of tensor a is damaged"),
    "size with a plus": (file_of(entry(A.replace("[2]", "[+2]"))), "not valid JSON"),
    "size with a zero before": (file_of(entry(A.replace("[2]", "[02]"))), "not valid JSON"),
    "size of 2^62": (file_of(entry(A.replace("[2]", f"[{2**62}]"))), "needs more bytes than 64 bits count"),
    "size of 2^64": (file_of(entry(A.replace("[2]", f"[{2**64}]"))), "entry of tensor a is damaged"),
    "size of 10^400": (file_of(entry(A.replace("[2]", f"[{10**400}]"))), "number out of range"),
    "offset minus zero": (file_of(entry(A.replace("[0,8]", "[-0,8]"))), "entry of tensor a is damaged"),
    "offset with an exponent": (file_of(entry(A.replace("[0,8]", "[0,8e0]"))), "entry of tensor a is damaged"),
    "three offsets": (file_of(entry(A.replace("[0,8]", "[0,8,9]"))), "entry of tensor a is damaged"),
    "offsets reversed": (file_of(entry(A.replace("[0,8]", "[8,0]").replace("[2]", "[0]"))), "the bytes 8 to 0"),
    "too few bytes": (file_of(entry(A.replace("[2]", "[3]"))), "of shape (3,) and type F32 needs 12 bytes"),
    "file too short": (file_of(entry(A), 7), "is truncated: tensor a ends at byte 70, the file at 69"),
    "file too long": (file_of(entry(A), 9), "1 bytes behind the last tensor, a"),
    "hole before": (file_of(entry(B + "[4,8]")), "the bytes 4 to 8 of the data, but those before it end at 0"),
    "hole between": (file_of(f'{{"a":{{{B}[0,4]}},"b":{{{B}[8,12]}}}}', 12), "tensor b has the bytes 8 to 12"),
    "overlap": (file_of(f'{{"a":{{{A}}},"b":{{{A.replace("[0,8]", "[4,12]")}}}}}', 12), "tensor b has the bytes 4 to"),
    "shared": (file_of(f'{{"a":{{{A}}},"b":{{{A}}}}}'), "tensor b has the bytes 0 to 8"),
    "empty first": (file_of(f'{{"z":{{{EMPTY}[0,0]}},"a":{{{A}}}}}'), None),
    "empty last": (file_of(f'{{"z":{{{EMPTY}[8,8]}},"a":{{{A}}}}}'), None),
    "empty within": (file_of(f'{{"z":{{{EMPTY}[4,4]}},"a":{{{A}}}}}'), "tensor z has"),
    "empty beyond": (file_of(f'{{"z":{{{EMPTY}[9,9]}},"a":{{{A}}}}}'), "tensor z has"),
    "count passes 64 bits": (file_of(entry(EMPTY.replace("[0]", f"[{2**32},{2**32},0]") + "[0,0]"), 0), "more bytes"),
    "zero before it would": (file_of(entry(EMPTY.replace("[0]", f"[0,{2**32},{2**32}]") + "[0,0]"), 0), None),
    "not aligned": (file_of(f'{{"a":{{"dtype":"F16","shape":[1],"data_offsets":[0,2]}},"b":{{{B}[2,6]}}}}', 6), None),
    "7 bytes": (b"1234567", "is truncated: 7 bytes hold no safetensors header"),
    "header too long": (file_of(entry(A), length=100_000_001), "would be 100000001 bytes long"),
    "header of 2^64 - 1": (file_of(entry(A), length=2**64 - 1), "would be 18446744073709551615 bytes long"),
    "header longer than the file": (file_of(entry(A), length=1000), "its header needs 1008 bytes of 70"),
    "header a byte too short": (file_of(entry(A), length=len(entry(A)) - 1), "not valid JSON"),
    "header a byte too long": (file_of(entry(A), length=len(entry(A)) + 1), "not valid JSON"),
}  # fmt: skip


def official(content: bytes) -> str | None:
    """What the format's own reader says."""
    try:
        deserialize(content)
    except SafetensorError as error:
        return str(error)
    return None


def ours(content: bytes, folder: Path) -> str | None:
    (folder / "model.safetensors").write_bytes(content)
    try:
        open_checkpoint(folder).close()
    except CheckpointError as error:
        message = str(error)
        assert message.startswith(str(folder / "model.safetensors")) and "\n" not in message and len(message) < 1000
        return message
    return None


@pytest.mark.parametrize("name", CASES)
def test_every_rule(name: str, tmp_path: Path) -> None:
    content, said = CASES[name]
    theirs, message = official(content), ours(content, tmp_path)
    assert (message is None) == (said is None) == (theirs is None), (message, theirs)
    assert said is None or (message is not None and said in message)


@pytest.mark.parametrize("dtype", _BITS)
def test_types_that_the_format_has(dtype: str, tmp_path: Path) -> None:
    """Counted in their own bits; what is not computed with is named."""
    size = _BITS[dtype]  # bytes of eight elements
    content = file_of(f'{{"a":{{"dtype":"{dtype}","shape":[8],"data_offsets":[0,{size}]}}}}', size)
    if official(content) is None:  # an older library has fewer
        message = ours(content, tmp_path)
        known = dtype in readable(quantized=False)
        assert message is None if known else message is not None and f"tensor a is {dtype}, but only" in message
        odd = content.replace(b"[8]", b"[7]")
        assert official(odd) is not None and "needs" in (ours(odd, tmp_path) or "")


def test_a_header_beyond_what_is_read_is_refused(tmp_path: Path) -> None:
    content = file_of(entry(A) + " " * MOST_BYTES)
    assert official(content) is None and f"but at most {MOST_BYTES} are read" in (ours(content, tmp_path) or "")


def test_long_names_are_shown_shortly(tmp_path: Path) -> None:
    message = ours(file_of(entry(A.replace("[0,8]", "[0,4]"), "x" * 100_000)), tmp_path)
    assert message is not None and "x" * 100 in message


# ---------------------------------------------------------------------------------- damage at random, from known seeds


def mutations(whole: bytes, rng: random.Random) -> Iterator[tuple[str, bytes]]:
    """(kind, file): numbers of the header changed, bytes flipped, ends cut, bytes added, types and names exchanged."""
    length = int.from_bytes(whole[:8], "little")
    text, data = whole[8 : 8 + length].decode(), whole[8 + length :]

    def built(header: str, rest: bytes = data, count: int | None = None) -> bytes:
        raw = header.encode("utf-8", "surrogatepass")
        return (len(raw) if count is None else count).to_bytes(8, "little") + raw + rest

    while True:
        numbers = list(re.finditer(r"\d+", text))
        spot = rng.choice(numbers)
        old = int(spot[0])
        new = rng.choice([old + 1, old - 1, old * 2, old // 2, 0, 2**31, 2**62, 2**63, 2**64, old + 8, 10**30, -old])
        spelt = rng.choice([*[str(new)] * 4, f"{new}.0", f"{new}e0", f"0{new}", f'"{new}"', "null", "true"])
        yield "number", built(text[: spot.start()] + spelt + text[spot.end() :])
        at = rng.randrange(length)
        yield "byte", built(text[:at] + chr(rng.randrange(128)) + text[at + 1 :])
        flipped = bytearray(whole)
        flipped[rng.randrange(8 + length)] ^= 1 << rng.randrange(8)
        yield "bit", bytes(flipped)
        yield "cut", whole[: rng.randrange(len(whole))]
        yield "longer", whole + bytes(rng.randrange(1, 20))
        yield "shorter header", built(text, count=max(0, length + rng.randrange(-20, 20)))
        yield "inserted", built(text[:at] + rng.choice('"{},:[]\\ \0001') + text[at:])
        yield "removed", built(text[:at] + text[at + rng.randint(1, 5) :])
        header: dict[str, Any] = json.loads(text)
        names = [name for name in header if name != "__metadata__"]
        one, two = rng.sample(names, 2)
        field = rng.choice(["dtype", "shape", "data_offsets"])
        header[one][field], header[two][field] = header[two][field], header[one][field]
        yield "exchanged", built(json.dumps(header))
        header = json.loads(text)
        header[one][field] = rng.choice([None, 1, "F32", [], [0], [0, 0], {}, True, "BF16", [2**40] * 3])
        yield "other value", built(json.dumps(header))
        header = json.loads(text)
        del header[one]
        yield "tensor lost", built(json.dumps(header))


@pytest.mark.parametrize(("seed", "rounds"), [(1, 60), pytest.param(2, 3000, marks=pytest.mark.full)])
def test_damage_is_refused_exactly_where_the_formats_reader_refuses_it(seed: int, rounds: int, tmp_path: Path) -> None:
    shapes: tuple[tuple[int, ...], ...] = ((3, 4), (5,), (), (0, 7), (2, 1, 2))
    tensors = {f"model.layers.{i}.weight": torch.zeros(shape).bfloat16() for i, shape in enumerate(shapes)}
    files = mutations(save(tensors, {"format": "pt"}), random.Random(seed))
    seen: dict[str, set[bool]] = {}
    for kind, content in (next(files) for _ in range(11 * rounds)):
        theirs, message = official(content), ours(content, tmp_path)
        taken = message is None or "can be read" in message  # a type that we do not compute with
        assert taken == (theirs is None), (kind, content[:400], theirs, message)
        seen.setdefault(kind, set()).add(taken)
    assert len(seen) == 11 and all(False in outcomes for outcomes in seen.values())
    assert sum(True in outcomes for outcomes in seen.values()) >= 4, "some damage changes no meaning"


def test_reading_leaves_nothing_mapped(tmp_path: Path) -> None:
    """Neither the header nor the data: mapped pages count in a process's resident memory."""
    save_file({"a": torch.ones(1 << 20)}, tmp_path / "model.safetensors")
    with open_checkpoint(tmp_path) as checkpoint:
        checkpoint.read("a")
        assert "model.safetensors" not in Path("/proc/self/maps").read_text()
