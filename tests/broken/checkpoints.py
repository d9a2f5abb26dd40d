"""Checkpoint folders, each broken in its own way: a seed gives the same folder everywhere."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

from atb_models.demo import demo_path
from tests.broken.damage import damaged_bytes, damaged_values
from tests.tiny import write_checkpoint

LENGTH_BYTES = 8  # of the header's length in a safetensors file
# Sizes that are absurd, or only wrong.
SIZES = (0, -1, 1, 3, 7, 1000, 10**6, 10**9, 10**12, 2**31, 2**62, 2**64, 10**400, True, "4", 4.0, [4], None)
MARKS = ("hidden", "size", "num", "layers", "heads", "dim", "rope", "eps", "max", "moe", "top", "experts")


def broken_checkpoint(seed: int, folder: Path) -> str:
    """Write the folder of a seed; which of its files was damaged."""
    random = Random(seed)
    folder.mkdir()
    files = _whole(random.choice(("demo", "demo", "qwen", "xverse", "sharded", "bin", "bin-sharded")))
    for name, data in files.items():
        (folder / name).write_bytes(data)
    name = random.choice(("config.json", *(name for name in files if not name.startswith("tokenizer"))))
    path = folder / name
    if random.random() < 0.04:
        _misplace(path, random)
    else:
        path.write_bytes(_damaged(name, files[name], random))
    return name


def _damaged(name: str, data: bytes, random: Random) -> bytes:
    if name.endswith(".safetensors"):
        return random.choice((_header_values, _header_values, _header_length, _tables, _numbers))(data, random)
    if name.endswith(".bin"):
        return _tables(data, random)
    if name == "config.json" and random.random() < 0.5:
        return _sizes(data, random)
    if random.random() < 0.7:
        return damaged_values(data.decode(), random).encode("utf-8", "surrogatepass")
    return damaged_bytes(data, random)


def _sizes(data: bytes, random: Random) -> bytes:
    """config.json with other numbers."""
    config = json.loads(data)
    names = [name for name in config if any(mark in name for mark in MARKS)]
    for name in random.sample(names, random.choice((1, 1, 2, 4))):
        config[name] = random.choice(SIZES)
    return json.dumps(config).encode()


def _header_values(data: bytes, random: Random) -> bytes:
    """Values of the header changed; its length goes with it."""
    stop = LENGTH_BYTES + int.from_bytes(data[:LENGTH_BYTES], "little")
    header = damaged_values(data[LENGTH_BYTES:stop].decode(), random).encode("utf-8", "surrogatepass")
    return len(header).to_bytes(LENGTH_BYTES, "little") + header + data[stop:]


def _header_length(data: bytes, random: Random) -> bytes:
    length = int.from_bytes(data[:LENGTH_BYTES], "little")
    other = random.choice((0, 1, length - 1, length + 1, length * 2, len(data), 10**8, 10**8 + 1, 2**63, 2**64 - 1))
    return other.to_bytes(LENGTH_BYTES, "little") + data[LENGTH_BYTES:]


def _tables(data: bytes, random: Random) -> bytes:
    """Bytes near the file's beginning or end changed, where its tables are, or the file cut or lengthened."""
    kind = random.randrange(5)
    if kind == 0:
        return data[: random.randrange(len(data))]
    if kind == 1:
        return data + bytes(random.randrange(1, 300))
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 3, 20))):
        near = random.randrange(min(3000, len(data)))
        changed[near if kind == 2 else len(data) - 1 - near if kind == 3 else random.randrange(len(data))] ^= (
            1 << random.randrange(8)
        )
    return bytes(changed)


def _numbers(data: bytes, random: Random) -> bytes:
    """Numbers of the data overwritten with ones: no numbers in every float type."""
    changed = bytearray(data)
    start = LENGTH_BYTES + int.from_bytes(data[:LENGTH_BYTES], "little")
    for _ in range(random.choice((1, 5, 50))):
        place = random.randrange(start, len(data) - 64)
        changed[place : place + 64] = b"\xff" * 64
    return bytes(changed)


def _misplace(path: Path, random: Random) -> None:
    """Something that is no such file."""
    path.unlink()
    kinds: tuple[Callable[[], object], ...] = (
        path.mkdir,
        lambda: path.symlink_to(path.with_name("gone")),
        lambda: path.write_bytes(b""),
        lambda: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"),
        lambda: None,
    )
    random.choice(kinds)()


@cache
def _whole(kind: str) -> dict[str, bytes]:
    """The files of a sound checkpoint: the embedded one, or a tiny one of another family or layout."""
    if kind == "demo":
        return {path.name: path.read_bytes() for path in sorted(demo_path().iterdir())}
    family, layout = (kind, "single") if kind in ("qwen", "xverse") else ("deepseek", kind)
    with TemporaryDirectory() as folder:
        write_checkpoint(Path(folder), family=family, layout=layout, generation={"eos_token_id": 2, "top_k": 5})
        return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def clear(folder: Path) -> None:
    """Remove what `broken_checkpoint` has made."""
    shutil.rmtree(folder)
