"""What is wrong with a tokenizer in a newer form, or with SentencePiece's and tiktoken's files, is named."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny

from atb_models.errors import CheckpointError, ConfigError
from atb_models.text.formats.newer_json import is_earlier
from atb_models.text.tokenizer import load_tokenizer
from tests.text.newer import cases, spm

ROOT = Path(__file__).resolve().parents[2]
EARLIER = pytest.mark.skipif(not is_earlier(), reason="tokenizers 0.20 and later read it themselves")


def json_file(folder: Path, content: dict[str, Any], settings: dict[str, Any] = cases.PLAIN) -> Path:
    (folder / "tokenizer.json").write_text(json.dumps(content))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def whole_words(**model: Any) -> dict[str, Any]:
    content = cases.byte_level(cases.WORD_MERGES, cases.WHOLE_WORDS, ignore_merges=True)
    return {**content, "model": {**content["model"], **model}}


def with_vocabulary(*pieces: str) -> Callable[[], dict[str, Any]]:
    """ignore_merges without bytes: pieces that are no words of bytes."""
    vocab = {piece: index for index, piece in enumerate(pieces)}
    options: dict[str, Any] = {"ignore_merges": True, "merges": [["a", "b"]]}
    model = {"type": "BPE", "vocab": vocab, **options}
    return lambda: {"version": "1.0", "added_tokens": [], "model": model}


def byte_that_merges_make() -> dict[str, Any]:
    content = cases.metaspace(prepend_scheme="never", split=False)
    vocab = dict(content["model"]["vocab"])
    for piece in ("0", "E", "4", "<0", "<0x", "<0xE", "<0xE4", "xy"):
        vocab.setdefault(piece, len(vocab) + 1)
    chain = [["<", "0"], ["<0", "x"], ["<0x", "E"], ["<0xE", "4"], ["<0xE4", ">"]]
    model = {**content["model"], "vocab": vocab, "merges": chain, "ignore_merges": True}
    return {**content, "model": model, "added_tokens": content["added_tokens"][:3]}


@EARLIER
@pytest.mark.parametrize(
    ("content", "why"),
    [
        (lambda: whole_words(end_of_word_suffix="</w>"), "for its pieces have a prefix or suffix"),
        (with_vocabulary("a", "b", "ab", "abb"), "for characters that are no pieces are dropped"),
        (lambda: {**with_vocabulary("a", "b", "ab", "你b", "?")(), "model": {
            **with_vocabulary("a", "b", "ab", "你b", "?")()["model"], "unk_token": "?"}},
         "for '你b' has characters that are no pieces"),
        (byte_that_merges_make, "for merges lead to the byte '<0xE4>'"),
    ],
)  # fmt: skip
def test_whole_words_that_cannot_be_told_apart(tmp_path: Path, content: Callable[[], dict[str, Any]], why: str) -> None:
    with pytest.raises(CheckpointError, match=rf"tokenizer\.json: model\.ignore_merges takes tokenizers 0\.19 .*{why}"):
        load_tokenizer(json_file(tmp_path, content()))


def pre_tokenizer(**fields: Any) -> dict[str, Any]:
    return {**cases.metaspace(prepend_scheme="first"), "pre_tokenizer": fields}


METASPACE = {"type": "Metaspace", "replacement": "▁"}
BEHIND = [{"type": "Digits", "individual_digits": True}, METASPACE | {"prepend_scheme": "first"}]


@EARLIER
@pytest.mark.parametrize(
    ("content", "why"),
    [
        (pre_tokenizer(**METASPACE, prepend_scheme="last"), "pre_tokenizer has prepend_scheme 'last', but must have"),
        (pre_tokenizer(**METASPACE, split="no"), "pre_tokenizer has split 'no', but must have true or false"),
        (pre_tokenizer(type="Metaspace", replacement="__", split=False), "pre_tokenizer has replacement '__', but"),
        (pre_tokenizer(type="Sequence", pretokenizers=BEHIND), "has a Metaspace with prepend_scheme 'first' behind"),
        ({**cases.metaspace(prepend_scheme="first"), "decoder": METASPACE | {"prepend_scheme": 1}}, "decoder has prep"),
        (whole_words(ignore_merges="yes"), "model.ignore_merges is 'yes', but must be true or false"),
        (whole_words(merges=[["H", "e"], ["H"]]), r"model.merges\[1\] is \['H'\], but must be a pair of pieces"),
        (whole_words(merges=[["H", "e"], ["no", "piece"]]), r"model.merges\[1\] needs 'no', which the vocabulary la"),
    ],
)  # fmt: skip
def test_fields_that_cannot_be_meant(tmp_path: Path, content: dict[str, Any], why: str) -> None:
    with pytest.raises(CheckpointError, match=rf"tokenizer\.json: .*{why}"):
        load_tokenizer(json_file(tmp_path, content))


def test_a_metaspace_behind_another_that_needs_no_beginning(tmp_path: Path) -> None:
    content = pre_tokenizer(type="Sequence", pretokenizers=[BEHIND[0], METASPACE | {"prepend_scheme": "always"}])
    tokenizer = load_tokenizer(json_file(tmp_path, content))
    assert tokenizer is not None
    pieces = [tokenizer.id_to_token(index) for index in tokenizer.encode("Hello1 world")]
    assert pieces[:3] == ["▁Hello", "▁", "<0x31>"] and pieces[-1] == "▁world"


@pytest.fixture
def spm_folder(tmp_path: Path) -> Path:
    pytest.importorskip("sentencepiece", reason="needs the extra tokenizers")
    model, settings, _ = cases.spm_cases()["spm"]
    (tmp_path / "tokenizer.model").write_bytes(model)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    return tmp_path


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"IQ== 0\nIg== 1\n", "tokenizer.model is no SentencePiece model"),
        (b"", "tokenizer.model is no SentencePiece model"),
        (b"version https://git-lfs.github.com/spec/v1\n", "tokenizer.model is a git-lfs pointer"),
        (
            spm.model([*spm.START, ("a", -1.0, spm.NORMAL), ("a", -2.0, spm.NORMAL)]),
            "no SentencePiece model: .*a is al",
        ),
    ],
)
def test_damaged_models(spm_folder: Path, data: bytes, why: str) -> None:
    (spm_folder / "tokenizer.model").write_bytes(data)
    with pytest.raises(CheckpointError, match=why):
        load_tokenizer(spm_folder)


@pytest.mark.parametrize(
    ("added", "why"),
    [
        ({"<a>": -1}, r"added_tokens\.json: the id of '<a>' is -1, but must be a token id"),
        ({"<a>": 400, "<b>": 400}, r"added_tokens\.json gives two tokens the same id"),
        ({"": 400}, r"added_tokens\.json: the token 400 is '', but must be a token"),
        ({"<a>": 400, "<b>": 3}, None),
    ],
)
def test_added_tokens_json(spm_folder: Path, added: dict[str, Any], why: str | None) -> None:
    settings = cases.LLAMA | {"additional_special_tokens": ["<next>"]}
    (spm_folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (spm_folder / "added_tokens.json").write_text(json.dumps(added))
    if why is not None:
        with pytest.raises(CheckpointError, match=why):
            load_tokenizer(spm_folder)
        return
    tokenizer = load_tokenizer(spm_folder)
    assert tokenizer is not None
    assert tokenizer.encode("<a><b><next>", add_special_tokens=False) == [400, 3, 401]
    assert tokenizer.decode([400, 3, 401]) == "<a><b>"


def test_a_listed_token_takes_the_place_of_a_piece(spm_folder: Path) -> None:
    listed = cases.listed(cases.added(3, "<s>", special=True), cases.added(4, "<|im_end|>"))
    (spm_folder / "tokenizer_config.json").write_text(json.dumps(cases.LLAMA | {"added_tokens_decoder": listed}))
    tokenizer = load_tokenizer(spm_folder)
    assert tokenizer is not None
    assert tokenizer.encode("<s><|im_end|></s>") == [3, 3, 4, 2]
    assert tokenizer.decode([3, 4, 2]) == tokenizer.id_to_token(4) == "<|im_end|>"


def test_what_a_model_drops_has_no_limit(tmp_path: Path) -> None:
    """A text may have any number of blanks that a normalizer drops, and of characters without a byte."""
    pytest.importorskip("sentencepiece", reason="needs the extra tokenizers")
    pieces = [*spm.START, *spm.BYTES, ("a", -1.0, spm.NORMAL), ("▁", -2.0, spm.NORMAL)]
    for model, limited, text in (
        (spm.model(pieces), True, "a  a"),
        (spm.model(pieces, remove_extra_whitespaces=True), False, "a a"),
        (spm.model([*spm.START, *pieces[-2:]], byte_fallback=False), False, "a  a"),
    ):
        (tmp_path / "tokenizer.model").write_bytes(model)
        tokenizer = load_tokenizer(tmp_path)
        assert tokenizer is not None
        assert (tokenizer.least_tokens(1000) > 0) is limited
        assert tokenizer.decode(tokenizer.encode("a  a")) == text


def test_bos_that_is_not_there(spm_folder: Path) -> None:
    settings = cases.LLAMA | {"eos_token": None, "add_eos_token": True}
    (spm_folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match="add_eos_token is set, but there is no eos_token"):
        load_tokenizer(spm_folder)


def test_a_model_alone_is_read_as_llamas(spm_folder: Path) -> None:
    expected = load_tokenizer(spm_folder)
    (spm_folder / "tokenizer_config.json").unlink()
    alone = load_tokenizer(spm_folder)
    assert expected is not None and alone is not None
    assert alone.encode("Hello world") == expected.encode("Hello world") and alone.bos_token_id == 1


@pytest.fixture
def ranks(tmp_path: Path) -> Path:
    pytest.importorskip("tiktoken", reason="needs the extra tokenizers")
    file, text, settings = cases.tiktoken_cases()["kimi tiktoken"]
    (tmp_path / file).write_text(text)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    return tmp_path / file


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda text: text + "a\n", r"line 273: 'a' is no token in base64 with a rank of its own"),
        (lambda text: text + "!!!! 900\n", r"line 273: '!!!! 900' is no token"),
        (lambda text: text + "SGU= 900\n", r"line 273: 'SGU= 900' is no token"),
        (lambda text: text + "eHl6 5\n", r"line 273: 'eHl6 5' is no token"),
        (lambda text: text.split("\n", 1)[1], r"has no token for the byte 0x00"),
        (lambda text: "version https://git-lfs.github.com/spec/v1\n", "is a git-lfs pointer"),
    ],
)
def test_damaged_ranks(ranks: Path, change: Callable[[str], str], why: str) -> None:
    ranks.write_text(change(ranks.read_text()))
    with pytest.raises(CheckpointError, match=rf"tiktoken\.model.* {why}"):
        load_tokenizer(ranks.parent)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"mask_token": "[MASK]"}, "'\\[MASK\\]' is named as a special token, but has no id"),
        (
            {"added_tokens_decoder": {"65": {"content": "[BOS]"}}},
            "the special token '\\[BOS\\]' has the id 65 of another",
        ),
    ],
)
def test_special_tokens_without_an_id_of_their_own(ranks: Path, settings: dict[str, Any], why: str) -> None:
    kimi = cases.tiktoken_cases()["kimi tiktoken"][2]
    (ranks.parent / "tokenizer_config.json").write_text(json.dumps(kimi | settings))
    with pytest.raises(CheckpointError, match=why):
        load_tokenizer(ranks.parent)


def test_two_files_of_ranks(ranks: Path) -> None:
    (ranks.parent / "more.tiktoken").write_text(ranks.read_text())
    with pytest.raises(CheckpointError, match=r"several vocabularies: more\.tiktoken, tiktoken\.model"):
        load_tokenizer(ranks.parent)


def test_ranks_of_an_unknown_class(ranks: Path) -> None:
    own = {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": ["own.OwnTokenizer", None]}}
    (ranks.parent / "tokenizer_config.json").write_text(json.dumps(own))
    with pytest.raises(ConfigError, match=r"needs its own code \(own\.OwnTokenizer\)"):
        load_tokenizer(ranks.parent)
    (ranks.parent / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "OwnTokenizer"}))
    with pytest.raises(
        ConfigError, match=r"tiktoken\.model is read for QWenTokenizer, TikTokenTokenizer, not for 'Own"
    ):
        load_tokenizer(ranks.parent)


def test_a_package_that_is_not_installed(ranks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    with pytest.raises(ConfigError, match=r"read with the package tiktoken, .*the extra tokenizers brings it: .*pip "):
        load_tokenizer(ranks.parent)


def test_a_command_names_the_extra(tmp_path: Path) -> None:
    """It ends with the status of what cannot be used as it is asked."""
    folder = cases.write(tmp_path / "cases")["spm"]
    (folder / "config.json").write_text(json.dumps(tiny.DEEPSEEK | {"vocab_size": 512}))
    (tmp_path / "sentencepiece.py").write_text("raise ModuleNotFoundError('hidden')\n")
    command = [sys.executable, str(ROOT / "run_pa.py"), "--model_path", str(folder), "--load_format", "dummy"]
    environ = {**os.environ, "PYTHONPATH": str(tmp_path)}
    run = subprocess.run([*command, "--device", "cpu"], env=environ, capture_output=True, text=True)
    assert run.returncode == 2, run.stderr
    assert f"{folder / 'tokenizer.model'} is read with the package sentencepiece, which is not installed" in run.stderr
    assert "the extra tokenizers brings it" in run.stderr and "Traceback" not in run.stderr
