"""Broken tokenizer files are refused soon, in little memory, with the file's name; never by a traceback."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from atb_models.demo import demo_path
from atb_models.errors import AtbError, RequestError
from atb_models.text.detokenizer import Detokenizer
from atb_models.text.tokenizer import Tokenizer, load_tokenizer
from tests.broken.limits import limits
from tests.broken.tokenizers import broken_folder, clear

SEEDS, MANY = 100, 2000
TEXTS = ("a b 你好 é\n", "", "<s></s>", "ab" * 500)
CHAT = [{"role": "user", "content": "Hi 你"}]


def use(tokenizer: Tokenizer) -> None:
    """What a service does with it."""
    for text in TEXTS:
        ids = tokenizer.encode(text)
        detokenizer = Detokenizer(tokenizer.decode)
        for index in ids[:50]:
            detokenizer.push(index)
        detokenizer.finish()
        tokenizer.decode([*ids, 2**31, 2**40])
    tokenizer.apply_chat_template(CHAT)


def outcome(folder: Path, damaged: str) -> str:
    """How it ended: "refused" or "request" with a message that names the file, or "used"."""
    try:
        tokenizer = load_tokenizer(folder)
        assert tokenizer is not None
    except AtbError as error:
        assert str(folder / damaged) in str(error), str(error)
        assert len(str(error)) < 1000, str(error)
        return "refused"
    try:
        use(tokenizer)
    except RequestError as error:
        assert damaged in str(error) or "the checkpoint's tokenizer" in str(error), str(error)
        assert str(folder) not in str(error) and len(str(error)) < 1000
        return "request"
    return "used"


def run(seeds: range, folder: Path) -> Counter[str]:
    ends: Counter[str] = Counter()
    for seed in seeds:
        damaged = broken_folder(seed, folder / str(seed))
        try:
            with limits():
                ends[outcome(folder / str(seed), damaged)] += 1
        except BaseException as error:
            raise AssertionError(f"seed {seed}, {damaged}: {type(error).__name__}: {error}") from error
        clear(folder / str(seed))
    return ends


def test_broken_tokenizers(tmp_path: Path) -> None:
    ends = run(range(SEEDS), tmp_path)
    assert ends["refused"] > SEEDS / 3 and ends["request"], ends


@pytest.mark.full
@pytest.mark.parametrize("part", range(10))
def test_many_broken_tokenizers(tmp_path: Path, part: int) -> None:
    size = MANY // 10
    ends = run(range(SEEDS + part * size, SEEDS + (part + 1) * size), tmp_path)
    assert ends["refused"] > size / 3, ends


def run_pa(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "atb_models", "run", "--model_path", str(folder), "--device", "cpu", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        ("tokenizer.json", '"merges":["', '"merges":["no_piece ', r"model\.merges\[0\]"),
        ("tokenizer.json", '"continuing_subword_prefix":null', '"continuing_subword_prefix":"#####"', "does not begin"),
        (
            "tokenizer_config.json",
            '"add_eos_token":false',
            f'"add_eos_token":{10**400}',
            "add_eos_token is a number of",
        ),
    ],
)
def test_the_command_says_it_in_a_line(tmp_path: Path, file: str, old: str, new: str, said: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(demo_path(), folder)
    text = json.dumps(json.loads((folder / file).read_text(encoding="utf-8")), separators=(",", ":"))
    assert old in text
    (folder / file).write_text(text.replace(old, new, 1), encoding="utf-8")
    ended = run_pa(folder, "--input_texts", "Hi")
    assert ended.returncode == 1 and "Traceback" not in ended.stderr and "panicked" not in ended.stderr
    errors = [line for line in ended.stderr.split("\n") if "error:" in line]
    assert len(errors) == 1 and re.search(rf"{folder / file}: .*{said}", errors[0])


def test_a_broken_template_ends_only_the_command_that_chats(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(demo_path(), folder)
    (folder / "chat_template.jinja").write_text("a\n{% soon %}")
    words = ["--input_texts", "Hi", "--max_output_length", "2"]
    assert run_pa(folder, *words).returncode == 0
    ended = run_pa(folder, *words, "--is_chat_model")
    assert ended.returncode == 2 and "Traceback" not in ended.stderr
    assert "chat_template.jinja is no valid Jinja template, line 2: Encountered unknown tag 'soon'" in ended.stderr
