"""Tokenizers: the fast path gives what transformers gives, for small made-up tokenizers and the real ones."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from tokenizers import Tokenizer as JsonTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers

from atb_models.errors import CheckpointError, ConfigError, RequestError
from atb_models.text.tokenizer import Tokenizer, load_tokenizer
from atb_models.text.tokenizer_added import LONG_TEXT

ROOT = Path(__file__).resolve().parents[2]
HEADERS = ROOT.parent / "shared" / "headers"
REAL = ("deepseek-moe-16b-base", "deepseek-moe-16b-chat", "qwen1.5-moe-a2.7b-chat", "xverse-moe-a4.2b")
TEXTS = (
    "Who is the CEO of Google?",
    "你好，你是谁？ 大语言模型",
    "def f(x):\n    return x**2  # 平方\n\n\n\tend",
    "emoji 👨‍👩‍👧 🇨🇳 café naïve \u200b\ufeff",
    "  two blanks before, three after   ",
    "e\u0301 12345 67.8 ø ö ú ÿ õ ÷",
    "a . b , c ! d ? it 's don 't I 've ' quoted ' n't",
    "<s>[INST] </s> <unk> <pad> <|im_start|>x<|im_end|> <｜begin▁of▁sentence｜>User<｜end▁of▁sentence｜>",
    "",
    " ",
)


@cache
def trained() -> str:
    """A small byte-level tokenizer.json with two special tokens and one ordinary added token."""
    tokenizer = JsonTokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.add_tokens(["<tool>"])
    return str(tokenizer.to_str())


def write(folder: Path, settings: dict[str, Any] | None = None, tokenizer: str | None = None) -> Path:
    (folder / "tokenizer.json").write_text(trained() if tokenizer is None else tokenizer)
    if settings is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def load(folder: Path, **options: Any) -> Tokenizer:
    tokenizer = load_tokenizer(folder, **options)
    assert tokenizer is not None
    return tokenizer


def assert_same(ours: Tokenizer, theirs: Any, texts: tuple[str, ...] = TEXTS) -> None:
    for text in texts:
        for special in (True, False):
            ids = ours.encode(text, add_special_tokens=special)
            assert ids == theirs.encode(text, add_special_tokens=special), text
            for skip in (True, False):
                expected = theirs.decode(ids, skip_special_tokens=skip)
                assert ours.decode(ids, skip_special_tokens=skip) == expected, text
    assert (ours.bos_token_id, ours.eos_token_id) == (theirs.bos_token_id, theirs.eos_token_id)


LLAMA = {"tokenizer_class": "LlamaTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
PLAIN = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", "clean_up_tokenization_spaces": False}
NEW_TOKEN = {"content": "<|im_start|>", "lstrip": False, "rstrip": True, "normalized": False, "single_word": False}
PAD_TOKEN = NEW_TOKEN | {"content": "<pad>"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "settings",
    [
        PLAIN,
        PLAIN | {"clean_up_tokenization_spaces": True},
        PLAIN | {"bos_token": "<|new bos|>", "pad_token": "<pad>", "additional_special_tokens": ["<|im_end|>"]},
        PLAIN | {"added_tokens_decoder": {"332": NEW_TOKEN | {"special": True}, "331": PAD_TOKEN}},
        LLAMA,
        LLAMA | {"unk_token": None},
        LLAMA | {"add_bos_token": False, "add_eos_token": True},
        LLAMA | {"bos_token": NEW_TOKEN | {"__type": "AddedToken"}, "add_eos_token": True},
    ],
)
def test_same_as_transformers(tmp_path: Path, settings: dict[str, Any]) -> None:
    from transformers import AutoTokenizer

    write(tmp_path, settings)
    theirs = AutoTokenizer.from_pretrained(str(tmp_path), local_files_only=True)
    theirs.clean_up_tokenization_spaces = False  # ours never cleans up
    assert_same(load(tmp_path), theirs)


@pytest.mark.filterwarnings("ignore")
def test_special_tokens_map(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    write(tmp_path, {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False})
    tokens = {"bos_token": NEW_TOKEN, "eos_token": "</s>", "additional_special_tokens": ["<|im_end|>"]}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(tokens))
    theirs = AutoTokenizer.from_pretrained(str(tmp_path), local_files_only=True)
    theirs.clean_up_tokenization_spaces = False  # ours never cleans up
    assert_same(load(tmp_path), theirs)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", REAL)
def test_real_tokenizers(name: str) -> None:
    if not (HEADERS / name).is_dir():
        pytest.skip(f"{HEADERS / name} is absent: the real tokenizers are not part of the project")
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    options: dict[str, Any] = {"local_files_only": True}
    if name.startswith("qwen"):  # its class does not exist in transformers 4.36
        file, settings = HEADERS / name / "tokenizer.json", HEADERS / name / "tokenizer_config.json"
        tokens = {key: value for key, value in json.loads(settings.read_text()).items() if key.endswith("_token")}
        theirs = PreTrainedTokenizerFast(tokenizer_file=str(file), clean_up_tokenization_spaces=False, **tokens)
    else:
        theirs = AutoTokenizer.from_pretrained(str(HEADERS / name), clean_up_tokenization_spaces=False, **options)
    ours = load(HEADERS / name)
    # transformers decodes DeepSeek's added letters (ø, ö, ...) to U+FFFD
    assert_same(ours, theirs, tuple(text for text in TEXTS if not (name.startswith("deepseek") and "ø" in text)))
    if not name.startswith("xverse"):  # whose stand-in lacks characters
        for text in TEXTS[:5]:
            assert ours.decode(ours.encode(text)) == text


def test_loading_imports_neither_transformers_nor_torch(tmp_path: Path) -> None:
    write(tmp_path, LLAMA)
    program = (
        "import sys; from atb_models.text.tokenizer import load_tokenizer; "
        f"print(load_tokenizer({str(tmp_path)!r}).encode('a')); print({{'transformers', 'torch'}} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[1] == "set()"


def test_no_tokenizer_files(tmp_path: Path) -> None:
    assert load_tokenizer(tmp_path) is None
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"has tokenizer_config\.json, but none of tokenizer\.json, tokeni"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"])
def test_unreadable_files_are_named(tmp_path: Path, name: str) -> None:
    write(tmp_path, PLAIN)
    (tmp_path / name).write_text("{")
    with pytest.raises(CheckpointError, match=rf"{name} is not valid JSON"):
        load_tokenizer(tmp_path)
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(CheckpointError, match=rf"{name} is a git-lfs pointer"):
        load_tokenizer(tmp_path)


def test_json_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: model cannot be used"):
        load_tokenizer(write(tmp_path, PLAIN, '{"model": {"type": "Unheard", "vocab": {"a": 0}}}'))


def test_bos_that_the_vocabulary_lacks_is_added_as_transformers_does(tmp_path: Path) -> None:
    tokenizer = load(write(tmp_path, LLAMA | {"bos_token": "<|start|>"}))
    assert tokenizer.bos_token_id is not None and tokenizer.encode("a")[0] == tokenizer.bos_token_id
    with pytest.raises(CheckpointError, match="add_bos_token is set, but there is no bos_token"):
        load_tokenizer(write(tmp_path, LLAMA | {"bos_token": None}))


def test_merges_as_lists(tmp_path: Path) -> None:
    content = json.loads(trained())
    content["model"]["merges"] = [merge.split(" ") for merge in content["model"]["merges"]]
    content["model"]["ignore_merges"] = False
    (tmp_path / "old").mkdir()
    (tmp_path / "new").mkdir()
    old, new = load(write(tmp_path / "old", PLAIN)), load(write(tmp_path / "new", PLAIN, json.dumps(content)))
    assert [old.encode(text) for text in TEXTS] == [new.encode(text) for text in TEXTS]


def test_added_tokens_decode_to_their_text(tmp_path: Path) -> None:
    tokenizer = JsonTokenizer.from_str(trained())
    tokenizer.add_tokens(["ü", "Àö"])
    ours = load(write(tmp_path, PLAIN, tokenizer.to_str()))
    for text in ("Bürgerüü über Àö", "ü", "你ü好"):
        ids = ours.encode(text)
        assert ours.decode(ids) == text and "\ufffd" in tokenizer.decode(ids)
    assert ours.decode([1, *ours.encode("ü"), 1]) == "ü"
    assert ours.decode([1, *ours.encode("ü")], skip_special_tokens=False) == "</s>ü"


def test_truncation_and_padding_of_the_file_are_off(tmp_path: Path) -> None:
    tokenizer = JsonTokenizer.from_str(trained())
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=64)
    ids = load(write(tmp_path, PLAIN, tokenizer.to_str())).encode("Who is the CEO of Google?")
    assert 3 < len(ids) < 64


def test_unknown_ids_decode_to_nothing(tmp_path: Path) -> None:
    tokenizer = load(write(tmp_path, PLAIN))
    assert tokenizer.decode([*tokenizer.encode("ab"), 99999]) == "ab"


@pytest.mark.parametrize("text", ["a\ud800", 7, None, ["a"]])
def test_what_is_no_text_is_refused(tmp_path: Path, text: Any) -> None:
    with pytest.raises(RequestError, match="Unicode text: half of a surrogate pair at character 1|must be text, not"):
        load(write(tmp_path, PLAIN)).encode(text)


def test_class_that_transformers_lacks(tmp_path: Path) -> None:
    tokenizer = load(write(tmp_path, PLAIN | {"tokenizer_class": "NewerTokenizer"}))
    assert tokenizer.decode(tokenizer.encode("你好")) == "你好"


@pytest.mark.filterwarnings("ignore")
def test_class_of_transformers_without_tokenizer_json(tmp_path: Path) -> None:
    model = json.loads(trained())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(model["merges"]))
    settings = {"tokenizer_class": "GPT2Tokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = load(tmp_path)
    assert tokenizer.eos_token_id == 1
    for text in (TEXTS[1], TEXTS[6]):  # the second has blanks before marks, which the class would clean up
        assert tokenizer.decode([*tokenizer.encode(text), 1]) == text


def test_class_of_transformers_that_fails_is_named(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text("no vocabulary")
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    with pytest.raises(CheckpointError, match=rf"the tokenizer in {tmp_path} cannot be loaded"):
        load_tokenizer(tmp_path)


def test_own_code_is_not_run_unless_trusted(tmp_path: Path) -> None:
    (tmp_path / "tokenization_own.py").write_text("raise SystemExit('ran')\n")
    own = {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": ["tokenization_own.OwnTokenizer", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(own))
    (tmp_path / "vocab.txt").write_text("a\n")
    with pytest.raises(ConfigError, match=r"needs its own code \(tokenization_own\.OwnTokenizer\); .*--trust"):
        load_tokenizer(tmp_path)
    assert load(write(tmp_path)).encode("ab")  # tokenizer.json is enough


OWN_CODE = """
from transformers import PreTrainedTokenizer

class OwnTokenizer(PreTrainedTokenizer):
    def __init__(self, vocab_file=None, **kwargs):
        super().__init__(**kwargs)
    vocab_size = 128
    def get_vocab(self): return {chr(i): i for i in range(128)}
    def _tokenize(self, text): return list(text)
    def _convert_token_to_id(self, token): return ord(token)
    def _convert_id_to_token(self, index): return chr(index)
    def convert_tokens_to_string(self, tokens): return "".join(tokens)
"""


def test_trusted_code_runs_and_is_named(tmp_path: Path) -> None:
    """In a process of its own: transformers copies the code to a folder of modules that it finds when imported."""
    folder = tmp_path / "a checkpoint"
    folder.mkdir()
    (folder / "tokenization_own.py").write_text(OWN_CODE)
    own = {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": ["tokenization_own.OwnTokenizer", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(own))
    program = (
        "import logging, sys; logging.basicConfig(); from atb_models.text.tokenizer import load_tokenizer; "
        "t = load_tokenizer(sys.argv[1], '{{ messages[0].content }}', trust_remote_code=True); "
        "print(t.encode('AB'), t.decode([67, 68]), t.apply_chat_template([{'role': 'user', 'content': 'E'}]))"
    )
    command, environ = [sys.executable, "-c", program, str(folder)], {"HF_MODULES_CACHE": str(tmp_path / "modules")}
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environ)
    assert run.stdout == "[65, 66] CD [69]\n", run.stderr
    assert f"running the tokenizer's own code, {folder / 'tokenization_own.py'}" in run.stderr
    assert len(run.stderr.splitlines()) == 1


def test_a_long_text_lets_other_threads_run(demo: Path) -> None:
    tokenizer = load_tokenizer(demo)
    assert tokenizer is not None
    text, pauses, ended = "One two three. " * (20 * LONG_TEXT // 15), 0, Event()

    def encode() -> list[int]:
        try:
            return tokenizer.encode(text)
        finally:
            ended.set()

    with ThreadPoolExecutor(1) as pool:
        ids = pool.submit(encode)
        while not ended.wait(0.001):
            pauses += 1
    assert pauses > 5, "of 1 ms, where encoding takes about 50"
    assert tokenizer.decode(ids.result()[1:]) == text
