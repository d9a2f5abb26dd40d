"""The families' real tokenizers: round trips, streams, chat prompts, and Qwen's without tokenizer.json."""

from __future__ import annotations

import json
import logging
import unicodedata
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from atb_models.errors import CheckpointError
from atb_models.text.detokenizer import Detokenizer
from atb_models.text.tokenizer import Tokenizer, load_tokenizer

DEEPSEEK, QWEN, XVERSE = "deepseek-moe-16b-chat", "qwen1.5-moe-a2.7b-chat", "xverse-moe-a4.2b"
NAMES = (DEEPSEEK, "deepseek-moe-16b-base", QWEN, XVERSE)
TEXTS = (
    "Who is the CEO of Google? It's $1,234.56; they're 'quoted' -- aren't they?",
    "你好，你是谁？大语言模型（LLM）是一种深度学习模型。　全角１２３",
    "👨‍👩‍👧‍👦 🇨🇳 👍🏽 ❤️ 🏳️‍🌈",
    "def f(x: int) -> int:\n    if x > 0:\n\treturn x ** 2  # 平方\r\n\n\n    return {'a': [1, 2]}\n",
    "naïve café Ærø über Ürümqi ÀÁþÿ÷ Ελληνικά русский عربى 日本語 한국어 ∑∞ \u200b\ufeff",
    "  blanks before,   between and after   ",
)
CHAT = [
    {"role": "system", "content": "You are a helpful assistant."},
    {"role": "user", "content": "Hi 你好"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Who?"},
]


@pytest.fixture(scope="module", params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def load(folder: Path, **options: Any) -> Tokenizer:
    tokenizer = load_tokenizer(folder, **options)
    assert tokenizer is not None
    return tokenizer


@pytest.fixture(scope="module")
def tokenizer(shared: Path, name: str) -> Tokenizer:
    return load(shared / "headers" / name)


@pytest.fixture(scope="module")
def passages(shared: Path) -> list[str]:
    """Every 40th passage and question of the BoolQ file."""
    with (shared / "data" / "boolq" / "dev.jsonl").open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in islice(lines, 0, None, 40)]
    return [unicodedata.normalize("NFC", f"{row['passage']}\n{row['question']}?") for row in rows]


def round_trip(name: str, text: str) -> str:
    """What comes back: XVERSE's stand-in cannot tell a blank at the very beginning from the one that it adds."""
    return text.removeprefix(" ") if name == XVERSE else text


def streamed(tokenizer: Tokenizer, ids: list[int]) -> Iterator[str]:
    detokenizer = Detokenizer(tokenizer.decode)
    for index in ids:
        detokenizer.push(index)
        yield detokenizer.take()
    detokenizer.finish()
    yield detokenizer.take()


def test_round_trips(tokenizer: Tokenizer, name: str, passages: list[str]) -> None:
    assert len(passages) > 80
    for text in (*TEXTS, *passages):
        assert tokenizer.decode(tokenizer.encode(text)) == round_trip(name, text)


def test_a_stream_gives_the_text_of_all_tokens_at_once(tokenizer: Tokenizer, passages: list[str]) -> None:
    for text in (*TEXTS, *passages[::8]):
        ids = tokenizer.encode(text)
        pieces = list(streamed(tokenizer, ids))
        assert "".join(pieces) == tokenizer.decode(ids)
        assert not any("\ufffd" in piece for piece in pieces) and sum(map(bool, pieces)) > len(text) / 50


def test_chat_prompts_are_the_documented_text(tokenizer: Tokenizer, name: str) -> None:
    expected = {
        DEEPSEEK: "<｜begin▁of▁sentence｜>You are a helpful assistant.\n\nUser: Hi 你好\n\n"
        "Assistant: Hello<｜end▁of▁sentence｜>User: Who?\n\nAssistant:",
        QWEN: "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nHi 你好<|im_end|>\n"
        "<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n",
        XVERSE: "You are a helpful assistant.\nuser: Hi 你好\nassistant: Hello<|endoftext|>user: Who?\nassistant: ",
    }
    text = expected[DEEPSEEK if name.startswith("deepseek") else name]
    assert tokenizer.render_chat(CHAT) == text
    ids = tokenizer.apply_chat_template(CHAT)
    assert ids == tokenizer.encode(text, add_special_tokens=False)
    assert ids.count(tokenizer.bos_token_id or -1) == (1 if name.startswith("deepseek") else 0)
    assert all(type(index) is int for index in ids)


@pytest.mark.parametrize("folder", [DEEPSEEK, QWEN])
def test_plain_format_is_the_published_template(
    shared: Path, tmp_path: Path, folder: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Without its chat template a checkpoint gives the same prompts, and says once where they come from."""
    for file in ("config.json", "tokenizer.json"):
        (tmp_path / file).symlink_to(shared / "headers" / folder / file)
    settings = json.loads((shared / "headers" / folder / "tokenizer_config.json").read_text())
    del settings["chat_template"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with_template, without = load(shared / "headers" / folder), load(tmp_path)
    with caplog.at_level(logging.INFO):
        for conversation in (CHAT, CHAT[1:], CHAT[:2]):
            for cue in (True, False):
                assert without.render_chat(conversation, cue) == with_template.render_chat(conversation, cue)
    assert [record.message for record in caplog.records] == [
        "the checkpoint has no chat template: using its family's documented plain format"
    ]


@pytest.fixture
def two_files(shared: Path, tmp_path: Path) -> Path:
    """Qwen's tokenizer as vocab.json and merges.txt, with its settings."""
    model = json.loads((shared / "headers" / QWEN / "tokenizer.json").read_text())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(model["merges"]) + "\n")
    (tmp_path / "tokenizer_config.json").symlink_to(shared / "headers" / QWEN / "tokenizer_config.json")
    return tmp_path


def test_qwen_from_vocabulary_and_merges(shared: Path, two_files: Path, passages: list[str]) -> None:
    whole, pieces = load(shared / "headers" / QWEN), load(two_files)
    assert pieces.eos_token_id == whole.eos_token_id == 151645
    for text in (*TEXTS, *passages, "e\u0301 <|im_start|>user<|endoftext|>"):
        ids = whole.encode(text)
        assert pieces.encode(text) == ids
        for skip in (True, False):
            assert pieces.decode(ids, skip_special_tokens=skip) == whole.decode(ids, skip_special_tokens=skip)
    assert pieces.apply_chat_template(CHAT) == whole.apply_chat_template(CHAT)


def test_qwen_without_any_special_token_in_its_settings(two_files: Path) -> None:
    (two_files / "tokenizer_config.json").unlink()
    (two_files / "tokenizer_config.json").write_text('{"tokenizer_class": "Qwen2Tokenizer"}')
    tokenizer = load(two_files)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (None, 151643)
    assert tokenizer.encode("a<|endoftext|>")[1:] == [151643]


def test_qwen_files_that_are_missing_or_damaged(two_files: Path) -> None:
    (two_files / "merges.txt").write_text("#version: 0.2\nno_such_piece either\n")
    with pytest.raises(
        CheckpointError, match=r"merges\.txt: merges\[0\] needs 'no_such_piece', which the vocabulary lacks"
    ):
        load(two_files)
    (two_files / "merges.txt").unlink()
    with pytest.raises(CheckpointError, match=r"merges\.txt does not exist"):
        load(two_files)
