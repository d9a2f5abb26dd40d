"""tiktoken's vocabularies, for a checkpoint without tokenizer.json: its own library divides the text.

A file has a line for each token: its bytes in base64, and its rank, which is its id. How a text is divided into words
and which tokens are special stands in the code of the checkpoint's tokenizer class, so each class that is read has an
entry in RULES.
"""

from __future__ import annotations

import re
import unicodedata
from base64 import b64decode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from atb_models.errors import CheckpointError, RequestError
from atb_models.files import read_lines
from atb_models.json_file import MOST_BYTES, check_size
from atb_models.text.byte_letters import BYTE_OF_LETTER, LETTER_OF_BYTE
from atb_models.text.formats.packages import package
from atb_models.text.token_bytes import NFC_BYTES
from atb_models.text.tokenizer_bpe import QWEN_WORDS
from atb_models.text.tokenizer_check import library_errors
from atb_models.text.tokenizer_settings import MOST_ID, SPECIAL, more_special, text_of
from atb_models.wording import shown

MODEL, SUFFIX = "tiktoken.model", ".tiktoken"
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
# Han; other letters, from a large one on, with one other character before them; up to three digits; marks; line ends;
# other blanks.
KIMI_WORDS = "|".join(
    (
        r"[\p{Han}]+",
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTION}",
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTION}",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
QWEN_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205)))
RUNS = re.compile(r"\s+|\S+")
LINE = re.compile(r"(\S+)\s+([0-9]{1,10})\s*")


@dataclass(frozen=True)
class ClassRules:
    """What the code of a tokenizer class adds to its file.

    words: the pattern that divides a text. reserved: how many special tokens follow the ranks; their texts are those
    that the settings list, else `tokens`, else <|reserved_token_ID|>. is_nfc: texts are normalized. hides_reserved:
    all of the special tokens are left out of a text, not only those that the settings call special.
    longest_text, longest_run: characters after which a text, and what has no change between blanks and others, is cut.
    """

    words: str
    reserved: int
    tokens: tuple[str, ...] = ()
    is_nfc: bool = False
    hides_reserved: bool = False
    longest_text: int | None = None
    longest_run: int | None = None


# Sources: tokenization_qwen.py of Qwen-7B, tokenization_kimi.py of Kimi-K2.
RULES = {
    "QWenTokenizer": ClassRules(QWEN_WORDS, len(QWEN_TOKENS), QWEN_TOKENS, is_nfc=True, hides_reserved=True),
    "TikTokenTokenizer": ClassRules(KIMI_WORDS, 256, longest_text=400_000, longest_run=25_000),
}


def find_tiktoken(folder: Path) -> Path | None:
    """The file of ranks in a folder. Raises CheckpointError where there are several."""
    found = sorted(path for path in folder.glob("*") if path.suffix == SUFFIX or path.name == MODEL)
    if len(found) > 1:
        raise CheckpointError(f"{folder} has several vocabularies: {', '.join(path.name for path in found)}")
    return found[0] if found else None


class TiktokenBackend:
    """A tokenizer of the tiktoken library. Its vocabulary is spelled in GPT-2's letters for bytes."""

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self._rules = RULES[str(settings["tokenizer_class"])]
        ranks = _read_ranks(path)
        self._special = _special_tokens(path, settings, self._rules, ranks)
        hidden = _hidden(settings, self._rules, self._special)
        missing = next((text for text in hidden if text not in self._special), None)
        if missing is not None:
            raise CheckpointError(f"{path.parent}: {missing!r} is named as a special token, but has no id")
        self._hidden = {self._special[text] for text in hidden}
        library = package("tiktoken", path)
        with library_errors(f"{path} cannot be used"):
            self._encoding = library.Encoding(
                path.name, pat_str=self._rules.words, mergeable_ranks=ranks, special_tokens=self._special
            )
        self._ranks = ranks
        self._bytes = {index: data for data, index in ranks.items()}
        self._bytes |= {index: text.encode() for text, index in self._special.items()}
        self._texts = {index: text for text, index in self._special.items()}

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """add_special_tokens: changes nothing, for these tokenizers put nothing around a text."""
        ids: list[int] = []
        with library_errors("the checkpoint's tokenizer cannot take this text", RequestError):
            for part in self._parts(unicodedata.normalize("NFC", text) if self._rules.is_nfc else text):
                ids += self._encoding.encode(part, allowed_special="all")
        return ids

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        hidden = self._hidden if skip_special_tokens else frozenset()
        data = b"".join(self._bytes.get(index, b"") for index in ids if index not in hidden)
        return data.decode("utf-8", "replace")

    def token_to_id(self, token: str) -> int | None:
        if token in self._special or not all(letter in BYTE_OF_LETTER for letter in token):
            return self._special.get(token)
        return self._ranks.get(bytes(BYTE_OF_LETTER[letter] for letter in token))

    def id_to_token(self, token_id: int) -> str | None:
        if token_id in self._texts or token_id not in self._bytes:
            return self._texts.get(token_id)
        return "".join(LETTER_OF_BYTE[byte] for byte in self._bytes[token_id])

    @cached_property
    def most_bytes_of_a_token(self) -> int | None:
        longest = max(map(len, self._bytes.values()))
        return longest * NFC_BYTES if self._rules.is_nfc else longest

    def _parts(self, text: str) -> Iterator[str]:
        step, longest = self._rules.longest_text or len(text) or 1, self._rules.longest_run
        for start in range(0, len(text), step):
            part = text[start : start + step]
            yield from (part,) if longest is None or len(part) <= longest else _without_long_runs(part, longest)


def _without_long_runs(text: str, longest: int) -> Iterator[str]:
    """The text, cut within runs of blanks and of other characters that are longer than `longest`."""
    start = 0
    for run in RUNS.finditer(text):
        for cut in range(run.start() + longest, run.end(), longest):
            yield text[start:cut]
            start = cut
    yield text[start:]


def _read_ranks(path: Path) -> dict[bytes, int]:
    """The id of each token by its bytes. Raises CheckpointError naming the line that is none."""
    check_size(path, MOST_BYTES)
    ranks: dict[bytes, int] = {}
    used: set[int] = set()
    for number, line in enumerate(read_lines(path, error=CheckpointError), start=1):
        if not line:
            continue
        match = LINE.fullmatch(line)
        try:
            token, rank = (b64decode(match[1], validate=True), int(match[2])) if match else (b"", 0)
        except ValueError:
            token, rank = b"", 0
        if not token or rank > MOST_ID or token in ranks or rank in used:
            raise CheckpointError(f"{path}, line {number}: {shown(line)} is no token in base64 with a rank of its own")
        ranks[token] = rank
        used.add(rank)
    lacking = next((byte for byte in range(256) if bytes((byte,)) not in ranks), None)
    if lacking is not None:
        raise CheckpointError(f"{path} has no token for the byte 0x{lacking:02X}, but must have one for each byte")
    return ranks


def _special_tokens(
    path: Path, settings: Mapping[str, Any], rules: ClassRules, ranks: Mapping[bytes, int]
) -> dict[str, int]:
    """The ids of the special tokens by their texts."""
    listed = {int(key): text_of(token) for key, token in (settings.get("added_tokens_decoder") or {}).items()}
    first = max(ranks.values()) + 1
    named = {index: f"<|reserved_token_{index}|>" for index in range(first, first + rules.reserved)}
    named |= dict(enumerate(rules.tokens, start=first)) | listed
    taken = next((index for index in listed if index < first), None)
    if taken is not None:
        raise CheckpointError(f"{path.parent}: the special token {listed[taken]!r} has the id {taken} of another token")
    return {text: index for index, text in named.items()}


def _hidden(settings: Mapping[str, Any], rules: ClassRules, special: Mapping[str, int]) -> set[str]:
    """The texts of the tokens that are no part of an answer."""
    named = [settings[name] for name in SPECIAL if settings.get(name) is not None] + more_special(settings)
    listed = (token for token in (settings.get("added_tokens_decoder") or {}).values() if token.get("special"))
    return {*map(text_of, named), *map(text_of, listed), *(special if rules.hides_reserved else ())}
