"""Files that a user gives are read in one way: a mark is no text, \\n and \\r\\n end lines, other bytes are told."""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from atb_models.clients.batch_file import read_requests
from atb_models.clients.bench_serve import _bodies
from atb_models.errors import AtbError, CheckpointError, ConfigError
from atb_models.files import read_lines, read_text
from atb_models.json_file import json_lines, parse_json, read_json
from atb_models.launcher.inputs import InputOptions, read_inputs
from atb_models.plan.chips import load_chips
from atb_models.server.args import _keys_of
from modeltest.accuracy.data import csv_rows, json_rows
from modeltest.command.texts import read_texts

MARKS = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\x1dh\x1ei"  # where str.splitlines parts lines


def inputs(**flags: Any) -> Any:
    defaults = {"input_file": None, "input_ids": None, "input_texts": [], "is_chat_model": True,
                "system_prompt": None, "max_batch_size": 1}  # fmt: skip
    return read_inputs(InputOptions(**{**defaults, **flags})).items


def request(text: str) -> dict[str, Any]:
    return {"custom_id": text, "method": "POST", "url": "/v1/completions", "body": {"prompt": text}}


def bench(path: Path) -> list[str]:
    args = argparse.Namespace(dataset=str(path), num_requests=None)
    return [body["prompt"] for body in _bodies(args)]


def as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


# name of what reads -> how it writes a text in a line, and the texts of a file's lines
LINES: dict[str, tuple[Callable[[str], str], Callable[[Path], list[str]]]] = {
    "--input_file": (
        lambda text: as_json([{"role": "user", "content": text}]),
        lambda path: [chat[0]["content"] for chat in inputs(input_file=str(path))],
    ),
    "batch": (lambda text: as_json(request(text)), lambda path: [one.body["prompt"] for one in read_requests(path)]),
    "bench": (lambda text: as_json({"prompt": text}), bench),
    "--api_key_file": (str, lambda path: _keys_of(str(path))),
    "prompts of modeltest": (str, lambda path: list(read_texts(str(path), "prompts"))),
    "questions, JSON": (
        lambda text: as_json({"q": text}),
        lambda path: [row["q"] for _, row in json_rows(path, {"q": str})],
    ),
    "questions, CSV": (
        lambda text: f'"{text}",x',
        lambda path: [row["q"] for _, row in csv_rows(path, ("q", "r"), headed=False)],
    ),
    "lines": (str, lambda path: [line for line in read_lines(path) if line]),
}


@pytest.mark.parametrize("name", LINES)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_lines(tmp_path: Path, name: str, end: str, mark: str) -> None:
    write, read = LINES[name]
    texts = ["first", MARKS, "last 你好"]
    (tmp_path / "file").write_bytes((mark + end.join(map(write, texts)) + end).encode())
    assert read(tmp_path / "file") == texts
    (tmp_path / "file").write_bytes((mark + end.join(map(write, texts))).encode())
    assert read(tmp_path / "file") == texts


@pytest.mark.parametrize("name", LINES)
def test_bytes_that_are_no_utf_8_are_told_with_their_place(tmp_path: Path, name: str) -> None:
    write, read = LINES[name]
    good, bad = f"\ufeff{write('first')}\r\n".encode(), f"{write('你好')}\n".encode("gbk")
    (tmp_path / "file").write_bytes(good + bad)
    byte = len(good) + next(place for place, byte in enumerate(bad) if byte > 127)
    with pytest.raises(ConfigError, match=rf"file is not UTF-8 text: .* at byte {byte}, in line 2"):
        read(tmp_path / "file")
    (tmp_path / "file").write_bytes((write("first") + "\n").encode("utf-16"))
    with pytest.raises(ConfigError, match="is not UTF-8 text: .* at byte 0, in line 1 .it looks like UTF-16"):
        read(tmp_path / "file")


WHOLE: dict[str, Callable[[Path], Any]] = {
    "--input_texts": lambda path: inputs(input_texts=[str(path)])[0][0]["content"],
    "text": read_text,
}


@pytest.mark.parametrize("name", WHOLE)
def test_whole_texts(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_bytes(f"\ufeffone\r\n{MARKS}\rtwo\n".encode())
    assert WHOLE[name](tmp_path / "file") == f"one\n{MARKS}\rtwo\n"
    (tmp_path / "file").write_bytes(b"one\n\xff")
    with pytest.raises(ConfigError, match="file is not UTF-8 text: invalid start byte at byte 4, in line 2"):
        WHOLE[name](tmp_path / "file")


def test_only_the_first_mark_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("\ufeff\ufeffa\ufeff", encoding="utf-8")
    assert read_text(tmp_path / "file") == "\ufeffa\ufeff"


@pytest.mark.parametrize("error", [ConfigError, CheckpointError])
def test_files_that_cannot_be_read_are_named(tmp_path: Path, error: type[AtbError]) -> None:
    with pytest.raises(error, match="none cannot be read: No such file"):
        read_text(tmp_path / "none", error=error)
    with pytest.raises(error, match="^the file cannot be read: Is a directory"):
        read_text(tmp_path, "the file", error)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "^it is not valid JSON: the key 'c' stands twice in one object"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ("1" * 5000, "^it is not valid JSON: it holds a number of 5000 digits$"),
        ("{", "line 1 column 2"),
        ("", "line 1 column 1"),
        ("'a'", "line 1 column 1"),
    ],
)
def test_json_that_is_none(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_json(text, "it")
    with pytest.raises(ConfigError, match="^rows, line 3 is not valid JSON"):
        list(json_lines(f"1\n \t\r\n{text or '?'}\n", "rows"))


def test_json_files_of_a_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes('\ufeff{\r\n"a": "\u2028"}'.encode())
    assert read_json(path) == {"a": "\u2028"}
    path.write_bytes(b'{"a": 1,\n"a": 2}')
    with pytest.raises(CheckpointError, match=r"config\.json is not valid JSON: the key 'a' stands twice"):
        read_json(path)
    path.write_bytes(b'{"a": "\xff"}')
    with pytest.raises(CheckpointError, match=r"config\.json is not UTF-8 text: .* at byte 7, in line 1"):
        read_json(path)
    with path.open("wb") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(CheckpointError, match=rf"config\.json has {1 << 40} bytes"):
        read_json(path)


def test_chips_files(tmp_path: Path) -> None:
    path = tmp_path / "chips.json"
    path.write_bytes(b'\xef\xbb\xbf[{"name": "a", "name": "b"}]')
    with pytest.raises(ConfigError, match=f"^chips file {path} is not valid JSON: the key 'name' stands twice"):
        load_chips(str(path))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('q,r\n"open,1\n2,3\n', "line 2 is not CSV: a quote that opens there is never closed"),
        ("q,r\n1,2\n3\r4,5\n", "line 3 is not CSV: a carriage return without a line feed stands outside quotes$"),
        (f"q,r\n{'x' * 200_000},1\n", "line 2 is not CSV: field larger than field limit"),
        ("q,r\n1\n", "line 2 has 1 cells where 2 are needed"),
    ],
)
def test_broken_records(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "file.csv").write_text(content, newline="")
    with pytest.raises(ConfigError, match=rf"file\.csv, {said}"):
        csv_rows(tmp_path / "file.csv", ("q", "r"))


def test_a_number_of_thousands_of_digits_is_told_as_one(tmp_path: Path) -> None:
    (tmp_path / "file.jsonl").write_text(f'{{"q": "x"}}\n{{"q": {"7" * 5000}}}\n')
    with pytest.raises(ConfigError) as refusal:
        list(json_rows(tmp_path / "file.jsonl", {"q": str}))
    place = f"{tmp_path}/file.jsonl, line 2"
    assert str(refusal.value) == f"{place} is not valid JSON: it holds a number of 5000 digits"


def test_line_ends_within_quotes_are_text(tmp_path: Path) -> None:
    (tmp_path / "file.csv").write_bytes(b'q,r\r\n"one\r\ntwo\rthree ""four""",5\r\n\r\n6,7')
    rows = csv_rows(tmp_path / "file.csv", ("q", "r"))
    assert rows == [(2, {"q": 'one\ntwo\rthree "four"', "r": "5"}), (5, {"q": "6", "r": "7"})]


@pytest.mark.parametrize(
    ("packed", "said"),
    [
        (b"no gzip", "cannot be unpacked: Not a gzipped file"),
        (gzip.compress(b'{"q": "a"}')[:-9], "cannot be unpacked: Compressed file ended"),
        (gzip.compress(b'{"q": "a"}')[:12] + b"\xff" * 40, "cannot be unpacked"),
        (gzip.compress(b"\xff"), "is not UTF-8 text"),
        (gzip.compress(bytes((1 << 28) + 1), 1), "unpacks to more than 268435456 bytes"),
    ],
)
def test_broken_packed_rows(tmp_path: Path, packed: bytes, said: str) -> None:
    (tmp_path / "rows.jsonl.gz").write_bytes(packed)
    with pytest.raises(ConfigError, match=rf"rows\.jsonl\.gz {said}"):
        list(json_rows(tmp_path / "rows.jsonl.gz", {"q": str}))
