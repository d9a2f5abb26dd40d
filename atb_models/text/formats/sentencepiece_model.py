"""SentencePiece's tokenizer.model, for a checkpoint without tokenizer.json: its own library divides the text.

What stands around it is as in LlamaTokenizerFast of transformers 4.57: bos and eos, added tokens, and where a text gets
the blank before its first word that the vocabulary counts on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from atb_models.errors import CheckpointError, RequestError
from atb_models.files import read_bytes
from atb_models.json_file import MOST_BYTES, check_size
from atb_models.text.byte_fallback import text_of_bytes
from atb_models.text.formats.added_tokens import AddedTokens, read_added_tokens
from atb_models.text.formats.packages import package
from atb_models.text.tokenizer_check import library_errors
from atb_models.text.tokenizer_settings import ADDED_BY_CLASS, SETTINGS, text_of

FILE = "tokenizer.model"
CLASS = "LlamaTokenizer"
BLANK = "\N{LOWER ONE EIGHTH BLOCK}"  # how pieces write a blank
# Protocol buffers merge what is appended: normalizer_spec (field 3) { add_dummy_prefix (field 3): false }.
WITHOUT_PREFIX = bytes((3 << 3 | 2, 2, 3 << 3, 0))
VARINT, FIXED64, BYTES = 0, 1, 2  # kinds of fields; the others have 4 bytes
NORMALIZER, CHARSMAP, REMOVES_BLANKS = 3, 2, 4  # fields of a model and of its normalizer_spec


class SentencePieceBackend:
    """A tokenizer of the sentencepiece library.

    legacy (a setting, true where there is none): the text after each added token begins with a blank of its own. Else
    only the text as a whole does, unless it begins with a blank.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        path = folder / FILE
        check_size(path, MOST_BYTES)
        data = read_bytes(path, error=CheckpointError)
        self._model, self._bare = _processor(data, path), _processor(data + WITHOUT_PREFIX, path)
        normal = self._model.normalize("a")
        if normal not in ("a", f"{BLANK}a"):
            raise CheckpointError(f"{path} writes 'a' as {normal!r}, but only blanks before a text are served")
        adds_prefix = settings.get("add_prefix_space") is not False and normal != "a"
        self._prefix = ("first" if settings.get("legacy") is False else "always") if adds_prefix else "never"
        pieces: list[str] = self._model.id_to_piece(list(range(len(self._model))))
        ids = {piece: index for index, piece in enumerate(pieces)}
        control = {index: {"content": piece} for index, piece in enumerate(pieces) if self._model.is_control(index)}
        added = read_added_tokens(folder, settings, ids)
        self._added = AddedTokens({**control, **added})
        self._special = {*control, self._model.unk_id(), *(index for index, token in added.items() if token["special"])}
        texts = {index: token["content"] for index, token in self._added.tokens.items()}
        self._pieces = dict(enumerate(pieces)) | texts
        self._ids = ids | {text: index for index, text in texts.items()}
        self._bytes = self._bytes_of(pieces) | {index: text.encode() for index, text in texts.items()}
        self._start, self._end = (self._of_end(name, folder, settings) for name in ("bos", "eos"))
        self._keeps_text = _keeps_text(data)

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        with library_errors("the checkpoint's tokenizer cannot take this text", RequestError):
            ids: list[int] = []
            for place, part in enumerate(self._added.split(text)):
                ids += (part,) if isinstance(part, int) else self._divided(part, is_first=place == 0)
        return [*self._start, *ids, *self._end] if add_special_tokens else ids

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        hidden = self._special if skip_special_tokens else frozenset()
        text = text_of_bytes(b"".join(self._bytes.get(index, b"") for index in ids if index not in hidden))
        return text if self._prefix == "never" else text.removeprefix(" ")

    def token_to_id(self, token: str) -> int | None:
        return self._ids.get(token)

    def id_to_token(self, token_id: int) -> str | None:
        return self._pieces.get(token_id)

    @cached_property
    def most_bytes_of_a_token(self) -> int | None:
        """Known where each byte has a piece and neither the normalizer nor an added token drops characters."""
        has_bytes = sum(map(self._model.is_byte, range(len(self._model)))) == 256
        strips = any(token.get("lstrip") or token.get("rstrip") for token in self._added.tokens.values())
        if strips or not has_bytes or not self._keeps_text:
            return None
        return max(len(piece.encode()) for piece in self._pieces.values())

    def _divided(self, text: str, *, is_first: bool) -> list[int]:
        begins_plainly = is_first and not text.startswith((" ", BLANK))
        has_prefix = self._prefix == "always" or (self._prefix == "first" and begins_plainly)
        ids: list[int] = (self._model if has_prefix else self._bare).encode(text)
        return ids

    def _bytes_of(self, pieces: Sequence[str]) -> dict[int, bytes]:
        return {
            index: bytes.fromhex(piece[3:5]) if self._model.is_byte(index) else piece.replace(BLANK, " ").encode()
            for index, piece in enumerate(pieces)
        }

    def _of_end(self, name: str, folder: Path, settings: Mapping[str, Any]) -> list[int]:
        """The token that is put before or after a text, none where the settings put none."""
        default = dict(zip(("bos", "eos"), ADDED_BY_CLASS[CLASS], strict=True))[name]
        if not settings.get(f"add_{name}_token", default):
            return []
        token = settings.get(f"{name}_token")
        index = None if token is None else self._ids.get(text_of(token))
        if index is None:
            raise CheckpointError(f"{folder / SETTINGS}: add_{name}_token is set, but there is no {name}_token")
        return [index]


def _processor(data: bytes, path: Path) -> Any:
    library = package("sentencepiece", path)
    with library_errors(f"{path} is no SentencePiece model"):
        return library.SentencePieceProcessor(model_proto=data)


def _keeps_text(data: bytes) -> bool:
    """Whether the normalizer of a model changes nothing but blanks, of which it drops none."""
    normalizer: dict[int, Any] = {}
    for number, value in _fields(data):
        if number == NORMALIZER:
            normalizer |= dict(_fields(value))
    return not normalizer.get(CHARSMAP) and not normalizer.get(REMOVES_BLANKS, True)


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """The fields of a message of protocol buffers that a library has already read: number and value."""
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        kind = key & 7
        value: int | bytes
        if kind == VARINT:
            value, place = _varint(data, place)
        else:
            size, place = _varint(data, place) if kind == BYTES else (8 if kind == FIXED64 else 4, place)
            value, place = data[place : place + size], place + size
        yield key >> 3, value


def _varint(data: bytes, place: int) -> tuple[int, int]:
    """A number of 7 bits a byte, the lowest first, and the place behind it."""
    value = shift = 0
    while data[place] & 0x80:
        value |= (data[place] & 0x7F) << shift
        place, shift = place + 1, shift + 7
    return value | data[place] << shift, place + 1
