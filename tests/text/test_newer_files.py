"""Tokenizers that transformers 4.36 cannot read: the same ids, texts and bytes as of a newer one, kept in ids.json."""

from __future__ import annotations

import json
import os
import random
import subprocess
from pathlib import Path
from typing import Any

import pytest

from atb_models.server.words import WordTable
from atb_models.text.detokenizer import Detokenizer
from atb_models.text.tokenizer import Tokenizer, load_tokenizer
from tests.text.newer import cases

FOLDER = Path(cases.__file__).parent
EXPECTED: dict[str, dict[str, Any]] = json.loads((FOLDER / "ids.json").read_text(encoding="utf-8"))
NEWER = "NEWER_TRANSFORMERS_PYTHON"  # a Python with a newer transformers, see reference.py


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return cases.write(tmp_path_factory.mktemp("tokenizers"))


def load(folder: Path, **options: Any) -> Tokenizer:
    tokenizer = load_tokenizer(folder, **options)
    assert tokenizer is not None
    return tokenizer


@pytest.fixture(scope="module", params=sorted(EXPECTED))
def name(request: pytest.FixtureRequest) -> str:
    chosen = str(request.param)
    if chosen.startswith("spm"):
        pytest.importorskip("sentencepiece", reason="needs the extra tokenizers")
    if chosen.endswith("tiktoken"):
        pytest.importorskip("tiktoken", reason="needs the extra tokenizers")
    return chosen


@pytest.fixture(scope="module")
def tokenizer(folders: dict[str, Path], name: str) -> Tokenizer:
    return load(folders[name])


def test_every_case_has_its_answers(folders: dict[str, Path]) -> None:
    assert folders.keys() == EXPECTED.keys()
    assert all(len(row["ids"]) == len(cases.TEXTS) for row in EXPECTED.values())


def test_same_ids_and_texts_as_newer_transformers(tokenizer: Tokenizer, name: str) -> None:
    expected = EXPECTED[name]
    for text, ids, shown, hidden in zip(
        cases.TEXTS, expected["ids"], expected["shown"], expected["hidden"], strict=True
    ):
        assert tokenizer.encode(text) == ids, text
        assert tokenizer.decode(ids, skip_special_tokens=False) == shown
        assert tokenizer.decode(ids) == hidden


def test_a_stream_gives_the_text_of_all_tokens_at_once(tokenizer: Tokenizer, name: str) -> None:
    rng = random.Random(name)
    known = sorted({index for ids in EXPECTED[name]["ids"] for index in ids})
    noise = [[rng.choice(known) for _ in range(40)] for _ in range(20)]
    for ids in (*EXPECTED[name]["ids"], *noise):
        detokenizer, pieces = Detokenizer(tokenizer.decode), []
        for index in ids:
            detokenizer.push(index)
            pieces.append(detokenizer.take())
        detokenizer.finish()
        text = "".join([*pieces, detokenizer.take()])
        if ids in noise and "\ufffd" in text:  # how many signs a broken character has depends on what follows it
            text, whole = (one.replace("\ufffd", "") for one in (text, tokenizer.decode(ids)))
            assert text == whole
        else:
            assert text == tokenizer.decode(ids)
            assert not any("\ufffd" in piece for piece in pieces)


def test_each_token_has_its_bytes(tokenizer: Tokenizer, name: str) -> None:
    """Log-probabilities and grammars count on them: together they are the bytes of the text."""
    words = WordTable(tokenizer)
    for ids in EXPECTED[name]["ids"]:
        data = [words[index].data for index in ids]
        assert None not in data
        text = tokenizer.decode(ids, skip_special_tokens=False)
        assert b"".join(one for one in data if one is not None).decode() in (text, f" {text}")
        assert all(words[index].special == (tokenizer.decode([index]) == "") for index in ids if words[index].text)


def test_least_tokens_is_no_more_than_there_are(tokenizer: Tokenizer, name: str) -> None:
    for text, ids in zip(cases.TEXTS, EXPECTED[name]["ids"], strict=True):
        assert tokenizer.least_tokens(len(text.encode())) <= len(ids) or not text


def test_whole_words_come_before_merges(folders: dict[str, Path]) -> None:
    """The field ignore_merges makes a difference, which tokenizers before 0.19 does not know."""
    whole, merged = load(folders["whole words"]), load(folders["merged words"])
    for word in ("abc", " abc", "你好", " world"):
        assert (
            len(whole.encode(word, add_special_tokens=False)) == 1 < len(merged.encode(word, add_special_tokens=False))
        )
    assert whole.encode("abcab") == merged.encode("abcab")


def test_long_texts_have_whole_words_too(folders: dict[str, Path]) -> None:
    tokenizer = load(folders["whole words"])
    (index,) = tokenizer.encode(" abc", add_special_tokens=False)
    assert tokenizer.encode(" abc" * 3000, add_special_tokens=False) == [index] * 3000


def test_kimis_texts_are_cut_within_long_runs(folders: dict[str, Path]) -> None:
    """After 25,000 characters without a change between blanks and others, and after 400,000 in all."""
    pytest.importorskip("tiktoken", reason="needs the extra tokenizers")
    tokenizer = load(folders["kimi tiktoken"])
    (word,) = tokenizer.encode("12")
    digits, odd = tokenizer.encode("123"), tokenizer.encode("1")
    assert tokenizer.encode("123" * 8333 + "1") == digits * 8333 + odd  # 25,000
    assert tokenizer.encode("123" * 8334) == digits * 8333 + odd + tokenizer.encode("23")
    assert tokenizer.encode("a " + "123" * 8334)[2:] == digits * 8333 + odd + tokenizer.encode("23")
    before = "a " * 199_999 + "a"  # 399,999 characters
    assert tokenizer.encode(before + "12")[-2:] == [odd[0], *tokenizer.encode("2")] != [word]


@pytest.mark.full
def test_the_answers_are_those_of_a_newer_transformers(folders: dict[str, Path]) -> None:
    python = os.environ.get(NEWER)
    if not python:
        pytest.skip(f"needs {NEWER}: {FOLDER / 'reference.py'} says what it must have")
    command = [python, str(FOLDER / "reference.py"), str(next(iter(folders.values())).parent)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(run.stdout)
    assert found == {name: row for name, row in EXPECTED.items() if not name.endswith("tiktoken")}
