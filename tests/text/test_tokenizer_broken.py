"""Broken tokenizer files are refused with the file and the field, and what breaks at a text is that request's error."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from atb_models.errors import CheckpointError, RequestError
from atb_models.text.tokenizer import load_tokenizer
from atb_models.text.tokenizer_settings import MOST_ID
from tests.text.test_tokenizer import PLAIN, trained, write

Change = Callable[[dict[str, Any]], None]


def at(*path: str | int, value: Any) -> Change:
    """Sets a place of a JSON document."""

    def change(document: Any) -> None:
        for key in path[:-1]:
            document = document[key]
        document[path[-1]] = value

    return change


def without(*path: str) -> Change:
    def change(document: Any) -> None:
        for key in path[:-1]:
            document = document[key]
        del document[path[-1]]

    return change


def template(**fields: Any) -> dict[str, Any]:
    whole = {"single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
             "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
             "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}}}  # fmt: skip
    return {"type": "TemplateProcessing", **whole, **fields}


ID = f"but must be a token id from 0 to {MOST_ID}"
OTHER = {"id": 400, "content": "<new>", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": True}  # fmt: skip
WORDS = {"type": "WordLevel", "vocab": {"a": 0, "<s>": 1}, "unk_token": "<unk>"}
JSON_CASES: list[tuple[Change, str]] = [
    (without("model"), "model is None, but must be an object"),
    (at("model", value=[]), r"model is \[\], but must be an object"),
    (at("model", "type", value="Nope"), "model cannot be used: data did not match"),
    (at("model", "dropout", value=2.0), "model cannot be used"),
    (at("model", "byte_fallback", value="yes"), "model cannot be used"),
    (without("model", "vocab"), "model.vocab is None, but must hold the pieces"),
    (at("model", "vocab", value={}), "model.vocab is {}, but must hold"),
    (at("model", "vocab", value=10**400), "model.vocab is a number of about 39\\d digits, but must hold"),
    (at("model", "vocab", "a", value=2**62), f"the id of 'a' in model.vocab is {2**62}, {ID}"),
    (at("model", "vocab", "a", value=MOST_ID + 1), f"the id of 'a' in model.vocab is {MOST_ID + 1}, {ID}"),
    (at("model", "vocab", "a", value=-1), f"the id of 'a' in model.vocab is -1, {ID}"),
    (at("model", "vocab", "a", value="1"), f"the id of 'a' in model.vocab is '1', {ID}"),
    (at("model", "vocab", "a", value=True), "the id of 'a' in model.vocab is True"),
    (at("model", "vocab", "a", value=7), "model.vocab gives '.' and '.' the id 7"),
    (at("model", "merges", value=5), "model.merges is 5, but must be a list of pairs"),
    (at("model", "merges", 3, value="no_piece either"), r"model.merges\[3\] needs 'no_piece', which the vocabulary"),
    (at("model", "merges", 3, value="abc"), r"model.merges\[3\] is 'abc', but must be a pair of pieces"),
    (at("model", "merges", 3, value=["a", 5]), r"model.merges\[3\] is \['a', 5\], but must be a pair"),
    (at("model", "merges", value=[["a b", "c"], ["a", "b"]]), "model.merges"),
    (at("model", "continuing_subword_prefix", value="####"), r"model.merges\[0\]: '.*' does not begin with"),
    (at("model", "continuing_subword_prefix", value=2**62), "continuing_subword_prefix is 4611686018427387904"),
    (at("added_tokens", value={}), "added_tokens is {}, but must be a list"),
    (at("added_tokens", 0, value="<s>"), r"added_tokens\[0\] is '<s>', but must be an object with id and content"),
    (at("added_tokens", 0, "id", value=2**62), rf"added_tokens\[0\].id is {2**62}, {ID}"),
    (at("added_tokens", 0, "id", value="0"), rf"added_tokens\[0\].id is '0', {ID}"),
    (at("added_tokens", 0, "id", value=1), r"added_tokens\[1\] has the id or the text of added_tokens\[0\]"),
    (at("added_tokens", 0, "id", value=5000), "added_tokens gives '<s>' the id 5000, but by the rest .* it has 0"),
    (at("added_tokens", 1, "content", value="<s>"), r"added_tokens\[1\] has the id or the text of added_tokens\[0\]"),
    (at("added_tokens", 1, "content", value=""), r"added_tokens\[1\] is .*, but must be a token"),
    (at("added_tokens", 1, "content", value="\ud800"), r"added_tokens\[1\] is .* half a surrogate pair"),
    (at("added_tokens", 1, "lstrip", value="no"), r"lstrip of added_tokens\[1\] is 'no', but must be true or false"),
    (lambda document: document["added_tokens"].append(OTHER), "added_tokens gives '<new>' the id 400, but .* has 331"),
    (at("pre_tokenizer", value={"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": False}),
     "pre_tokenizer cannot be used"),
    (at("pre_tokenizer", value=5), "pre_tokenizer cannot be used"),
    (at("normalizer", value={"type": "Precompiled", "precompiled_charsmap": "//=="}), "normalizer cannot be used"),
    (at("decoder", value={"type": "Nope"}), "decoder cannot be used"),
    (at("truncation", value={"max_length": 10**400}), "truncation cannot be used"),
    (at("padding", value="long"), "padding cannot be used"),
    (at("post_processor", value=template(special_tokens={})), "post_processor names '<s>', which its special_tokens"),
    (at("post_processor", value={"type": "Sequence", "processors": [template(special_tokens={})]}), "names '<s>'"),
    (at("post_processor", value=template(special_tokens={"<s>": {"id": "<s>", "ids": [2**32 - 1], "tokens": ["<s>"]}})),
     rf"an id of post_processor.special_tokens\['<s>'\] is {2**32 - 1}, {ID}"),
    (at("post_processor", value=template(single=[{"SpecialToken": {"id": {}, "type_id": 0}}])), "names {}, which its"),
    (at("post_processor", value={"type": "RobertaProcessing", "sep": ["</s>", -1]}), "post_processor cannot be used"),
    (lambda document: document.update(model=WORDS, added_tokens=[]), "cannot be used: WordLevel error: Missing"),
    (at("model", value={"type": "Unigram", "unk_id": 2**62, "vocab": [["a", 0.0]]}), "model cannot be used"),
    (at("version", value="9"), "cannot be read: Unknown tokenizer version '9'"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "said"), JSON_CASES)
def test_tokenizer_json(tmp_path: Path, change: Change, said: str, capfd: pytest.CaptureFixture[str]) -> None:
    document = json.loads(trained())
    change(document)
    write(tmp_path, PLAIN, json.dumps(document))
    with pytest.raises(CheckpointError, match=rf"tokenizer\.json:? .*{said}"):
        load_tokenizer(tmp_path)
    assert "panicked" not in capfd.readouterr().err


SETTINGS_CASES: list[tuple[dict[str, Any], str]] = [
    ({"tokenizer_class": 5}, "tokenizer_class is 5, but must be a text"),
    ({"tokenizer_class": ["LlamaTokenizer"]}, "tokenizer_class is"),
    ({"add_bos_token": "no"}, "add_bos_token is 'no', but must be true or false"),
    ({"add_eos_token": 2**62}, "add_eos_token is 4611686018427387904"),
    ({"eos_token": 7}, "eos_token is 7, but must be a token"),
    ({"eos_token": ""}, "eos_token is ''"),
    ({"eos_token": {"text": "</s>"}}, "eos_token is {'text': '</s>'}, but must be a token"),
    ({"bos_token": {"content": 10**400}}, "bos_token is {'content': 10{50,}"),
    ({"bos_token": {"content": "<s>", "normalized": "yes"}}, "normalized of bos_token is 'yes'"),
    ({"pad_token": "\ud800"}, "pad_token is .* half a surrogate pair"),
    ({"additional_special_tokens": "<a>"}, "additional_special_tokens is '<a>', but must be a list of tokens"),
    ({"additional_special_tokens": ["<a>", 5]}, r"additional_special_tokens\[1\] is 5, but must be a token"),
    ({"extra_special_tokens": 5}, "extra_special_tokens is 5"),
    ({"extra_special_tokens": {"image_token": None}}, r"extra_special_tokens\[image_token\] is None"),
    ({"added_tokens_decoder": [5]}, r"added_tokens_decoder is \[5\], but must be an object of tokens by id"),
    ({"added_tokens_decoder": {"x": {"content": "<a>"}}}, r"the id of added_tokens_decoder\['x'\] is 'x', " + ID),
    ({"added_tokens_decoder": {"-1": {"content": "<a>"}}}, "is '-1', " + ID),
    ({"added_tokens_decoder": {"4611686018427387904": {"content": "<a>"}}}, ID),
    ({"added_tokens_decoder": {"9" * 5000: {"content": "<a>"}}}, ID),
    ({"added_tokens_decoder": {"331": "<a>"}}, r"added_tokens_decoder\['331'\] is '<a>', but must be an object"),
    ({"added_tokens_decoder": {"331": {}}}, r"added_tokens_decoder\['331'\] is {}, but must be a token"),
    ({"added_tokens_decoder": {"331": {"content": "<a>"}, "0331": {"content": "<b>"}}}, "has the id or the text of"),
    ({"added_tokens_decoder": {"331": {"content": "<a>"}, "332": {"content": "<a>"}}}, "has the id or the text of"),
    ({"added_tokens_decoder": {"9": {"content": "</s>"}}}, "added_tokens_decoder gives '</s>' the id 9, but .* has 1"),
    ({"auto_map": {"AutoTokenizer": [5, None]}}, "auto_map names 5, but must name classes"),
    ({"auto_map": 2**62}, "auto_map names 4611686018427387904"),
]


@pytest.mark.parametrize(("settings", "said"), SETTINGS_CASES)
@pytest.mark.parametrize("file", ["tokenizer_config.json", "special_tokens_map.json"])
def test_settings(tmp_path: Path, file: str, settings: dict[str, Any], said: str) -> None:
    is_map = file == "special_tokens_map.json"
    if is_map and "added_tokens_decoder" in settings and "gives" in said:
        pytest.skip("the list of added tokens belongs into tokenizer_config.json")
    write(tmp_path, PLAIN if is_map else PLAIN | settings)
    if is_map:
        (tmp_path / file).write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match=rf"{file}: .*{said}"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "config.json"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"a": {"b": 1, "b": 2}}', "is not valid JSON: the key 'b' stands twice"),
        (b"[" * 100_000, "is not valid JSON: .*nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "is not valid JSON: it holds a number of"),
        (b'{"a": "\xff"}', "is not UTF-8 text: invalid start byte at byte 7"),
        (b"5", "holds a JSON int where an object is expected"),
        (b"", "is not valid JSON"),
    ],
)
def test_json_that_is_none(tmp_path: Path, file: str, content: bytes, said: str) -> None:
    write(tmp_path, {"eos_token": "</s>"})
    (tmp_path / file).write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{file} {said}"):
        load_tokenizer(tmp_path)


def test_marks_and_windows_line_ends_are_no_damage(tmp_path: Path) -> None:
    write(tmp_path, PLAIN)
    plain = load_tokenizer(tmp_path)
    for path in tmp_path.iterdir():
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b", ", b",\r\n"))
    marked = load_tokenizer(tmp_path)
    assert plain is not None and marked is not None and plain.encode("Who?") == marked.encode("Who?")


def test_a_text_that_the_tokenizer_cannot_take_is_the_requests_error(tmp_path: Path) -> None:
    document = json.loads(trained())
    vocab = {"a": 0, "1": 1, "你": 2, "<s>": 3, "</s>": 4, "<tool>": 5}
    document["model"] = {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"}
    document["pre_tokenizer"] = {"type": "WhitespaceSplit"}
    document["added_tokens"] = []
    tokenizer = load_tokenizer(write(tmp_path, PLAIN, json.dumps(document)))
    assert tokenizer is not None and tokenizer.encode("a 1") == [0, 1]
    for text in ("b", "b" * 10_000):
        with pytest.raises(RequestError, match="the checkpoint's tokenizer cannot take this text: WordLevel error"):
            tokenizer.encode(text)


def test_a_panic_of_the_library_is_an_error_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is found to panic is checked before; should something else do so, it is named too."""
    monkeypatch.setattr("atb_models.text.tokenizer_check._check_post_processor", lambda *_: None)
    document = json.loads(trained()) | {"post_processor": template(special_tokens={})}
    with pytest.raises(CheckpointError, match=r"tokenizer\.json cannot be used: no entry found for key"):
        load_tokenizer(write(tmp_path, PLAIN, json.dumps(document)))


QWEN = {"tokenizer_class": "Qwen2Tokenizer"}


@pytest.mark.parametrize(
    ("vocab", "merges", "said"),
    [
        ('{"a": 0, "a": 1}', "", r"vocab\.json is not valid JSON: the key 'a' stands twice"),
        ('{"a": 0, "b": 0}', "", r"vocab\.json: the vocabulary gives 'b' and 'a' the id 0"),
        ('{"a": -5}', "", r"vocab\.json: the id of 'a' in the vocabulary is -5"),
        ("{}", "", r"vocab\.json: the vocabulary is {}"),
        ('{"a": 0}', "#version: 0.2\na b c\n", r"merges\.txt: merges\[0\] is 'a b c', but must be a pair"),
        ('{"a": 0}', "\xff", r"merges\.txt is not UTF-8 text"),
    ],
)
def test_qwens_two_files(tmp_path: Path, vocab: str, merges: str, said: str) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(QWEN))
    (tmp_path / "vocab.json").write_text(vocab)
    (tmp_path / "merges.txt").write_bytes(merges.encode("latin-1"))
    with pytest.raises(CheckpointError, match=said):
        load_tokenizer(tmp_path)
