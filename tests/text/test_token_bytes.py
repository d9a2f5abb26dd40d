"""How many bytes a token can stand for: never fewer than any token of any text does, or not known."""

from __future__ import annotations

import random
import sys
import unicodedata
from pathlib import Path

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

from atb_models.text.byte_letters import BYTE_OF_LETTER
from atb_models.text.token_bytes import BYTE_PIECES, NFC_BYTES, most_bytes_of_a_token
from atb_models.text.tokenizer import load_tokenizer

FAMILIES = ("deepseek-moe-16b-base", "deepseek-moe-16b-chat", "qwen1.5-moe-a2.7b-chat", "xverse-moe-a4.2b")
LETTERS = dict.fromkeys(BYTE_OF_LETTER)


def byte_level(*pieces: str, **options: object) -> Tokenizer:
    """A byte-level tokenizer of single bytes and these pieces."""
    vocabulary = {piece: index for index, piece in enumerate([*LETTERS, *pieces])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], **options))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tokenizer


def fallback(*pieces: str) -> Tokenizer:
    """One that spells what is no piece in bytes."""
    vocabulary = {piece: index for index, piece in enumerate([*sorted(BYTE_PIECES), *pieces])}
    return Tokenizer(models.BPE(vocabulary, [], byte_fallback=True, unk_token=None))


def test_the_longest_piece_counts() -> None:
    assert most_bytes_of_a_token(byte_level()) == 1
    assert most_bytes_of_a_token(byte_level("abcdefg", "Ġhello")) == 7
    assert most_bytes_of_a_token(fallback("你好吗")) == 9
    tokenizer = byte_level()
    tokenizer.add_special_tokens([AddedToken("<|a long special token|>")])
    assert most_bytes_of_a_token(tokenizer) == len("<|a long special token|>")


def test_what_drops_or_merges_text_has_no_limit() -> None:
    unknown: list[Tokenizer] = [
        Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]")),
        Tokenizer(models.WordPiece({"a": 0, "[UNK]": 1}, unk_token="[UNK]")),
        Tokenizer(models.Unigram([("a", 0.0)], 0, byte_fallback=False)),
        Tokenizer(models.BPE({"a": 0, "<unk>": 1}, [], unk_token="<unk>", fuse_unk=True)),
        byte_level(end_of_word_suffix="</w>"),
    ]
    letterless = Tokenizer(models.BPE({"a": 0, "b": 1}, []))
    letterless.pre_tokenizer = pre_tokenizers.ByteLevel()
    unknown.append(letterless)
    for normalizer in (
        normalizers.Strip(), normalizers.NFKC(), normalizers.Lowercase(), normalizers.StripAccents(),
        normalizers.Replace("aa", "a"), normalizers.Replace(Regex(" +"), " "),
        normalizers.Sequence([normalizers.NFC(), normalizers.Strip()]),
    ):  # fmt: skip
        tokenizer = byte_level()
        tokenizer.normalizer = normalizer
        unknown.append(tokenizer)
    for pre in (
        pre_tokenizers.Whitespace(), pre_tokenizers.WhitespaceSplit(), pre_tokenizers.BertPreTokenizer(),
        pre_tokenizers.CharDelimiterSplit(","), pre_tokenizers.Split(" ", "removed"),
    ):  # fmt: skip
        tokenizer = byte_level()
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre, pre_tokenizers.ByteLevel()])
        unknown.append(tokenizer)
    for flag in ("lstrip", "rstrip"):
        tokenizer = byte_level()
        tokenizer.add_tokens([AddedToken("<x>", **{flag: True})])
        unknown.append(tokenizer)
    assert [most_bytes_of_a_token(tokenizer) for tokenizer in unknown] == [None] * len(unknown)


def test_normalizers_that_keep_text() -> None:
    tokenizer = byte_level("abc")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("_"), normalizers.Replace(" ", "_")])
    assert most_bytes_of_a_token(tokenizer) == 3
    tokenizer.normalizer = normalizers.NFC()
    assert most_bytes_of_a_token(tokenizer) == 3 * NFC_BYTES


def test_nfc_makes_no_text_shorter_than_that() -> None:
    """Of each character, the longest text that is canonically the same, from the database of Unicode."""
    characters = [chr(i) for i in range(sys.maxunicode + 1) if not 0xD800 <= i < 0xE000]
    longest: dict[str, int] = {}
    for character in characters:
        parts = unicodedata.normalize("NFD", character)
        if len(parts) == 1:
            longest[parts] = max(longest.get(parts, 0), len(character.encode()))
    for character in characters:
        parts = unicodedata.normalize("NFD", character)
        most = max(len(character.encode()), sum(longest.get(part, len(part.encode())) for part in parts))
        assert most <= NFC_BYTES * len(unicodedata.normalize("NFC", character).encode()), hex(ord(character))


def texts(seed: int) -> list[str]:
    chance = random.Random(seed)
    blocks = [(0x20, 0x7F), (0xA0, 0x250), (0x300, 0x370), (0x4E00, 0x9FFF), (0xAC00, 0xD7A4), (0x1F300, 0x1F600)]
    found = [" " * 500, "a" * 500, "\n" * 300, "=" * 400, "1234567890" * 50]
    found += ["e\u0301" * 200, "\u1fbe\u0308\u0301" * 100]  # which NFC makes shorter
    for _ in range(200):
        low, high = chance.choice(blocks)
        found.append("".join(chr(chance.randrange(low, high)) for _ in range(chance.randrange(1, 60))))
    return found


@pytest.mark.parametrize("name", ["demo", *FAMILIES])
def test_no_text_has_fewer_tokens(name: str, demo: Path, request: pytest.FixtureRequest) -> None:
    folder = demo if name == "demo" else request.getfixturevalue("shared") / "headers" / name
    tokenizer = load_tokenizer(folder)
    assert tokenizer is not None and tokenizer.least_tokens(10_000) >= 10
    for text in texts(0):
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert len(ids) >= tokenizer.least_tokens(len(text.encode())), text[:20]
