"""The files of a question set: where they are, whether they are the published ones, and their rows."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import logging
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atb_models.errors import ConfigError
from atb_models.files import decode_text, read_bytes
from atb_models.json_file import json_lines

logger = logging.getLogger("atb_models.modeltest")
MOST_BYTES = 1 << 28  # of a packed file, unpacked


@dataclass(frozen=True)
class Source:
    """Where a set comes from. patterns: its files in the data folder. sha256: of published files, where recorded.

    subjects: how many files the published set has, of those with one for each subject.
    """

    patterns: tuple[str, ...]
    licence: str
    address: str
    sha256: Mapping[str, str]
    subjects: int | None = None


def find(name: str, source: Source, folder: Path) -> list[Path]:
    """The files in `folder` of the set `name`, sorted. Raises ConfigError where there is none."""
    files = sorted({path for pattern in source.patterns for path in folder.glob(pattern) if path.is_file()})
    if not files:
        published = ", ".join(f"{file} with sha256 {sha}" for file, sha in source.sha256.items())
        raise ConfigError(
            f"{name}: {folder} has no {' or '.join(source.patterns)}; nothing is downloaded: put the files of"
            f" {source.address} there ({published or 'sha256 not recorded'}; licence {source.licence}),"
            " or name their folder with --data_dir"
        )
    return files


def say_differences(source: Source, files: Sequence[Mapping[str, Any]]) -> None:
    """Log what is not as published. files: each with `file` and `sha256`."""
    for one in files:
        if source.sha256 and one["sha256"] not in source.sha256.values():
            logger.warning("%s is not the published file, its sha256 is %s", one["file"], one["sha256"])
    if source.subjects not in (None, len(files)):
        logger.warning("the data has %d of %d subjects", len(files), source.subjects)


def sha256(path: Path) -> str:
    """Raises ConfigError where the file cannot be read."""
    try:
        with path.open("rb") as stream:
            digest = hashlib.sha256()
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    return digest.hexdigest()


def json_rows(path: Path, fields: Mapping[str, type]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(key, row) of a JSONL file, which may be packed by gzip. fields: those that each row needs, with their types.

    Raises ConfigError naming file and line.
    """
    for number, row in json_lines(_text(path), str(path)):
        for field, kind in fields.items():
            if not isinstance(row, dict) or not isinstance(row.get(field), kind):
                raise ConfigError(f"{path}, line {number} needs a field {field} of type {kind.__name__}")
            if isinstance(row[field], str) and not _is_text(row[field]):
                raise ConfigError(f"{path}, line {number}: {field} has half a surrogate pair, which is no text")
        yield f"{path.name}:{number}", row


def csv_rows(path: Path, columns: Sequence[str], *, headed: bool = True) -> list[tuple[int, dict[str, str]]]:
    """(line, row) of a CSV file: where it begins, and it by column. headed: the first row names these, else `columns`.

    Raises ConfigError naming the file and the column that is missing, or the line of the row that is too short.
    """
    rows = list(_records(_text(path), str(path)))
    names = rows.pop(0)[1] if headed and rows else list(columns)
    for column in columns:
        if column not in names:
            raise ConfigError(f"{path} has no column {column}; its columns are {', '.join(names)}")
    needed = max(names.index(column) for column in columns) + 1
    for number, cells in rows:
        if len(cells) < needed:
            raise ConfigError(f"{path}, line {number} has {len(cells)} cells where {needed} are needed")
    return [(number, dict(zip(names, cells, strict=False))) for number, cells in rows]


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _text(path: Path) -> str:
    raw = read_bytes(path)
    if path.suffix == ".gz":
        try:
            raw = gzip.GzipFile(fileobj=io.BytesIO(raw)).read(MOST_BYTES + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise ConfigError(f"{path} cannot be unpacked: {error}") from None
        if len(raw) > MOST_BYTES:
            raise ConfigError(f"{path} unpacks to more than {MOST_BYTES} bytes; no question set is that large")
    return decode_text(raw, str(path))


def _records(text: str, place: str) -> Iterator[tuple[int, list[str]]]:
    """(line, cells) of each record of a CSV text that is not empty. Raises ConfigError naming the line of a broken one.

    Within quotes a line end is a character like others, so a quote that is never closed would swallow the rest.
    """
    lines = iter(text.split("\n"))
    ended = False

    def counted() -> Iterator[str]:
        nonlocal ended
        yield from (f"{line}\n" for line in lines)
        ended = True

    reader = csv.reader(counted())
    while True:
        first = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as failure:
            is_return = str(failure).startswith("new-line character")
            why = "a carriage return without a line feed stands outside quotes" if is_return else failure
            raise ConfigError(f"{place}, line {reader.line_num} is not CSV: {why}") from None
        if cells is None:
            return
        if ended:  # the reader asks for a line after the last one only within quotes
            raise ConfigError(f"{place}, line {first} is not CSV: a quote that opens there is never closed")
        if cells:
            yield first, cells
