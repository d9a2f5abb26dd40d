"""The header of a safetensors file: eight bytes of its length (little endian), then a JSON object of the tensors.

A header is taken exactly where the format's own reader (Rust, release 0.8) takes it: its JSON is strict, numbers are
unsigned 64-bit integers, and the tensors' bytes follow one another without a hole, an overlap or a byte left over.
Unlike it, no header of more than MOST_BYTES is read.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final, NamedTuple

from atb_models.errors import CheckpointError
from atb_models.wording import named, shown

LENGTH_BYTES: Final = 8
FORMAT_MOST_BYTES: Final = 100_000_000  # the format's own limit
# A hundred thousand tensors, five times those of the largest published checkpoint in one file. Parsed, such a header
# may take some fifty times its size.
MOST_BYTES: Final = 16 << 20
_UINT64: Final = 1 << 64
_LEVELS: Final = 125  # of lists and objects within an entry's further fields
_FIELDS: Final = ("dtype", "shape", "data_offsets")
_BITS: Final = {
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
}
_LONE_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class Entry(NamedTuple):
    """One tensor; its bytes are [begin, end) behind the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class _Object(dict[str, Any]):
    """A JSON object that remembers which of its keys stood there twice."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.twins: set[str] = set()
        if len(self) < len(pairs):
            seen: set[str] = set()
            for key, _ in pairs:
                (self.twins if key in seen else seen).add(key)


def parse_header(raw: bytes | bytearray, data_bytes: int, file: object) -> dict[str, Entry]:
    """The tensors of a header whose file has `data_bytes` bytes behind it, in the order of their bytes.

    Raises CheckpointError that begins with `file` and names the tensor.
    """
    header = _parse(raw, file)
    metadata = header.pop("__metadata__", None)
    if "__metadata__" in header.twins:
        raise CheckpointError(f"{file}: the safetensors header has __metadata__ twice")
    if metadata is not None and not (isinstance(metadata, dict) and all(type(v) is str for v in metadata.values())):
        raise CheckpointError(f"{file}: __metadata__ of the header is no object of texts: {shown(metadata)}")
    entries = {name: _entry(name, value, file) for name, value in header.items()}
    ordered = dict(sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)))
    _check_offsets(ordered, LENGTH_BYTES + len(raw), data_bytes, file)
    return ordered


def _parse(raw: bytes | bytearray, file: object) -> _Object:
    try:
        text = raw.decode("utf-8")
        header = json.loads(
            text, object_pairs_hook=_Object, parse_int=_integer, parse_float=_number, parse_constant=_refuse
        )
        if _LONE_SURROGATE.search(text):
            json.dumps(header, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: the safetensors header is not valid JSON: {error}") from None
    if not isinstance(header, _Object):
        raise CheckpointError(f"{file}: the safetensors header is no JSON object")
    return header


def _integer(text: str) -> int | float:
    """As the format's reader has it: what does not fit into 64 bits, and -0, is a floating-point number."""
    if len(text) <= 20 and text != "-0" and -(_UINT64 >> 1) <= (value := int(text)) < _UINT64:
        return value
    return _number(text)


def _number(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"number out of range: {text[:40]}")
    return value


def _refuse(text: str) -> None:
    raise ValueError(f"{text} is no JSON number")


def _entry(name: str, value: Any, file: object) -> Entry:
    """One tensor's entry: an object of three fields and perhaps others; a list of the three is allowed too."""
    whole = value
    if isinstance(value, list) and len(value) == len(_FIELDS):
        value = _Object(list(zip(_FIELDS, value, strict=True)))
    if not isinstance(value, _Object) or not value.twins.isdisjoint(_FIELDS) or any(f not in value for f in _FIELDS):
        raise _damaged(name, whole, file)
    dtype, shape, offsets = (value[field] for field in _FIELDS)
    if isinstance(dtype, dict) and list(dtype.values()) == [None]:  # another spelling of a name in serde's JSON
        (dtype,) = dtype
    sane = isinstance(shape, list) and isinstance(offsets, list) and len(offsets) == 2
    if not sane or not all(type(n) is int and n >= 0 for n in (*shape, *offsets)):
        raise _damaged(name, whole, file)
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise CheckpointError(f"{file}: tensor {named([name])} is of no known type: {shown(dtype)}")
    if len(value) > len(_FIELDS) and _deeper_than(value, _LEVELS + 1):
        raise _damaged(name, whole, file)
    return Entry(dtype, tuple(shape), *offsets)


def _damaged(name: str, value: Any, file: object) -> CheckpointError:
    return CheckpointError(f"{file}: the header's entry of tensor {named([name])} is damaged: {shown(value)}")


def _check_offsets(ordered: dict[str, Entry], data: int, data_bytes: int, file: object) -> None:
    """Each tensor's bytes begin where the last one's end, are as many as its shape and type need, and all are there."""
    end = 0
    for name, entry in ordered.items():
        tensor = f"{file}: tensor {named([name])}"
        if entry.begin != end or entry.end < entry.begin:
            raise CheckpointError(
                f"{tensor} has the bytes {entry.begin} to {entry.end} of the data, but those before it end at {end}:"
                " a hole, an overlap, or a place that two share"
            )
        bits = _bits(entry)
        if bits is None or bits % 8 or bits // 8 != entry.end - entry.begin:
            needed = "more bytes than 64 bits count" if bits is None else f"{bits / 8:.15g} bytes"
            raise CheckpointError(
                f"{tensor} of shape {shown(entry.shape)} and type {entry.dtype} needs {needed}, but the header gives it"
                f" {entry.end - entry.begin}"
            )
        end = entry.end
    if end > data_bytes:
        name = next(name for name, entry in ordered.items() if entry.end > data_bytes)
        raise CheckpointError(
            f"{file} is truncated: tensor {named([name])} ends at byte {data + ordered[name].end}, the file at"
            f" {data + data_bytes}; fetch it again"
        )
    if end < data_bytes:
        raise CheckpointError(
            f"{file} has {data_bytes - end} bytes behind the last tensor, {named(list(ordered)[-1:]) or 'none'}: the"
            " header or the data is not that of this file"
        )


def _bits(entry: Entry) -> int | None:
    """Bits of the tensor's data; None where counting them passes 64 bits, as it may for an empty tensor."""
    count = 1
    for size in entry.shape:
        count *= size
        if count >= _UINT64:
            return None
    bits = count * _BITS[entry.dtype]
    return bits if bits < _UINT64 else None


def _deeper_than(value: Any, levels: int) -> bool:
    """Whether lists and objects are nested in each other more than so many times."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    nests = isinstance(value, (dict, list))
    return nests and (levels == 0 or any(_deeper_than(item, levels - 1) for item in inner))
