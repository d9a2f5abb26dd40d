"""The tokenizers: each is a folder's files by name. What a newer transformers makes of them is in ids.json."""

from __future__ import annotations

import json
import sys
from base64 import b64encode
from pathlib import Path
from typing import Any

from atb_models.text.byte_letters import BYTE_OF_LETTER
from tests.text.newer import spm

SETTINGS = "tokenizer_config.json"
TEXTS = (
    "Hello world",
    " Hello  world ",
    "  two blanks, three after   ",
    "<s>Hello<tool>Hello </s> world<tool> Hello",
    "<tool>Hello<s> world",
    "▁Hello ▁ world",
    "abcabc abc xabc ab c",
    "你好，世界 é 👍🏽 e\u0301",
    "Hello\n\nworld\t1234 don't HELLO'S 你Hello好abc世",
    "<|im_start|>user<|endoftext|>[BOS]<|reserved_token_280|>",
    "<0xE4>Hello<unk>",
    "",
    " ",
)
LETTERS = list(BYTE_OF_LETTER)
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BLANK = "▁"
# Of words that begin with a blank, and some that begin with none.
MERGES = ["H e", "l l", "He ll", "Hell o", "▁ Hello", "w o", "r l", "rl d", "wo rld", "▁ world", "a b", "b c", "▁ ab"]


def added(index: int, text: str, *, special: bool = False, **flags: bool) -> dict[str, Any]:
    rest = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": special}
    return {"id": index, "content": text, **rest, **flags}


def listed(*tokens: dict[str, Any]) -> dict[str, Any]:
    """As added_tokens_decoder."""
    return {str(token["id"]): {name: value for name, value in token.items() if name != "id"} for token in tokens}


def byte_level(merges: list[str], words: tuple[str, ...] = (), **model: Any) -> dict[str, Any]:
    """A tokenizer.json as Llama 3's: words are pieces that no merges lead to."""
    pieces = [*LETTERS, *dict.fromkeys("".join(merge.split(" ")) for merge in merges), *words]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokens = [
        added(len(pieces) + i, text, special=text != "<tool>") for i, text in enumerate(("<s>", "</s>", "<tool>"))
    ]
    return {
        "version": "1.0",
        "added_tokens": tokens,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": SPLIT}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
            ],
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [len(pieces)], "tokens": ["<s>"]}},
        },
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "vocab": vocabulary, "merges": [merge.split(" ") for merge in merges], **model},
    }


def metaspace(kind: str = "BPE", decoder: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    """A tokenizer.json as Llama 2's of newer releases."""
    words = list(dict.fromkeys("".join(merge.split(" ")) for merge in MERGES))
    letters = sorted({letter for text in TEXTS[:4] for letter in text} - {" "} | set("abcdefghxyz<>" + BLANK))
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words, *letters]
    model: dict[str, Any] = {"type": kind, "byte_fallback": True}
    if kind == "BPE":
        model |= {
            "vocab": {piece: i for i, piece in enumerate(pieces)},
            "merges": [merge.split(" ") for merge in MERGES],
        }
        model |= {"unk_token": "<unk>", "fuse_unk": True, "ignore_merges": False}
    else:
        model |= {"unk_id": 0, "vocab": [[piece, -float(i) / 7 - 1] for i, piece in enumerate(pieces)]}
    tokens = [added(i, text, special=True) for i, text in enumerate(pieces[:3])]
    parts = [
        {"type": "Replace", "pattern": {"String": BLANK}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ]
    return {
        "version": "1.0",
        "added_tokens": [*tokens, added(len(pieces), "<tool>")],
        "pre_tokenizer": {"type": "Metaspace", "replacement": BLANK, **fields},
        "decoder": decoder or {"type": "Sequence", "decoders": parts},
        "model": model,
    }


def with_blanks() -> dict[str, Any]:
    """Merges of pieces that hold blanks, which no "a b" can write."""
    content = byte_level([])
    pieces = [
        *sorted({*"Helo wrdabc<>/tsx,", "é", "你", "\n"}),
        "He",
        "ll",
        "Hell",
        "Hello",
        "Hello ",
        "w",
        " w",
        " wo",
        "Hello w",
    ]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    merges = [
        ["H", "e"],
        ["l", "l"],
        ["He", "ll"],
        ["Hell", "o"],
        [" ", "w"],
        [" w", "o"],
        ["Hello", " "],
        ["Hello", " w"],
    ]
    content["model"] = {"type": "BPE", "vocab": vocabulary, "merges": merges}
    content["added_tokens"] = [
        added(len(vocabulary), "<s>", special=True), added(len(vocabulary) + 1, "<tool>", lstrip=True, rstrip=True),
        added(len(vocabulary) + 2, "</s>", special=True),
    ]  # fmt: skip
    return {**content, "pre_tokenizer": None, "post_processor": None, "decoder": {"type": "Fuse"}}


PLAIN = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
LLAMA = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
NEOX = {"tokenizer_class": "GPTNeoXTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "</s>"}
WORD_MERGES = ["H e", "l l", "He ll", "a b", "b c", "Ġ w"]
WHOLE_WORDS = ("abc", "Ġabc", "Hello", "Ġworld", "ä½łå¥½", "xab", "Hellox")
FIRST, NEVER = {"prepend_scheme": "first"}, {"prepend_scheme": "never", "split": True}
METASPACE_DECODER = {"type": "Metaspace", "replacement": BLANK}
SPM_WORDS = ["".join(merge.split(" ")) for merge in MERGES]
SPM_LETTERS = "".join(sorted({*"".join(TEXTS[:4]), *"fgxyz"} - {" ", BLANK})) + BLANK
TOOL, NEXT = added(len(spm.START) + 256 + len(SPM_WORDS) + len(SPM_LETTERS), "<tool>"), "<|next|>"


def json_cases() -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """tokenizer.json and tokenizer_config.json."""
    return {
        "whole words": (byte_level(WORD_MERGES, WHOLE_WORDS, ignore_merges=True), PLAIN),
        "merged words": (byte_level(WORD_MERGES, WHOLE_WORDS, ignore_merges=False), PLAIN),
        "pairs with blanks": (with_blanks(), PLAIN),
        "first whole": (metaspace(prepend_scheme="first", split=False), LLAMA | {"legacy": False}),
        "first split": (metaspace(prepend_scheme="first", split=True), PLAIN),
        "always whole": (metaspace(prepend_scheme="always", split=False), LLAMA | {"add_bos_token": False}),
        "always split": (metaspace(prepend_scheme="always", split=True), PLAIN),
        "never whole": (metaspace(prepend_scheme="never", split=False), PLAIN),
        "never split": (metaspace(prepend_scheme="never"), PLAIN),
        "unigram": (metaspace("Unigram", METASPACE_DECODER | FIRST, **FIRST), PLAIN),
        "unigram never": (metaspace("Unigram", METASPACE_DECODER | NEVER, **NEVER), PLAIN),
        "neox": (byte_level(WORD_MERGES, WHOLE_WORDS), NEOX),
        "neox with ends": (byte_level(WORD_MERGES), NEOX | {"add_bos_token": True, "add_eos_token": True}),
        "neox prefix": (prefixed(False), NEOX | {"add_prefix_space": True}),
        "neox no prefix": (prefixed(True), NEOX),
    }  # fmt: skip


def prefixed(value: bool) -> dict[str, Any]:
    """A byte-level tokenizer whose pre-tokenizer stands alone."""
    state = {"type": "ByteLevel", "add_prefix_space": value, "trim_offsets": True, "use_regex": True}
    return {**byte_level(WORD_MERGES), "pre_tokenizer": state}


def spm_cases() -> dict[str, tuple[bytes, dict[str, Any], dict[str, Any]]]:
    """tokenizer.model, tokenizer_config.json and added_tokens.json."""
    model = spm.bpe(SPM_WORDS, SPM_LETTERS)
    strips = listed(*(added(i, text, special=True) for i, text in enumerate(("<unk>", "<s>", "</s>"))))
    strips |= listed(TOOL | {"lstrip": True, "rstrip": True})
    return {
        "spm": (model, LLAMA | {"added_tokens_decoder": listed(TOOL)}, {}),
        "spm legacy": (model, LLAMA | {"legacy": True, "add_eos_token": True}, {TOOL["content"]: TOOL["id"]}),
        "spm first": (model, LLAMA | {"legacy": False, "added_tokens_decoder": listed(TOOL)}, {}),
        "spm strips": (model, LLAMA | {"legacy": False, "added_tokens_decoder": strips}, {}),
        "spm no prefix": (model, LLAMA | {"add_prefix_space": False, "legacy": False, "add_bos_token": False}, {}),
        "spm more special": (model, LLAMA | {"additional_special_tokens": [NEXT, "<tool>"]}, {}),
        "spm unigram": (spm_unigram(), LLAMA, {}),
    }


def spm_unigram() -> bytes:
    words = [(word, -float(rank) / 7 - 1, spm.NORMAL) for rank, word in enumerate([*SPM_WORDS, *SPM_LETTERS])]
    return spm.model([*spm.START, *spm.BYTES, *words], spm.UNIGRAM)


def ranks(*words: str) -> str:
    """A file of tiktoken: each byte, then words; a word is reached by merges of two words before it, or as a whole."""
    tokens = [*(bytes((byte,)) for byte in range(256)), *(word.encode() for word in words)]
    return "".join(f"{b64encode(token).decode()} {rank}\n" for rank, token in enumerate(tokens))


def tiktoken_cases() -> dict[str, tuple[str, str, dict[str, Any]]]:
    """The file's name, its text, and tokenizer_config.json."""
    words = ("He", "ll", "Hell", "Hello", " w", "or", " wor", "ab", "bc", "你好", "abc", "é", "12", "123", "'t", "'s")
    first = 256 + len(words)
    names = ("[BOS]", "[EOS]", "<s>", "</s>", "[UNK]", "[PAD]")
    tokens = (added(first + i, name, special=True) for i, name in enumerate(names))
    kimi = {"tokenizer_class": "TikTokenTokenizer", "bos_token": "[BOS]", "eos_token": "[EOS]"}
    kimi |= {"unk_token": "[UNK]", "pad_token": "[PAD]", "additional_special_tokens": ["<s>", "</s>"]}
    kimi |= {"added_tokens_decoder": listed(*tokens, added(first + 9, "<tool>"))}
    return {
        "qwen tiktoken": ("qwen.tiktoken", ranks(*words), {"tokenizer_class": "QWenTokenizer"}),
        "kimi tiktoken": ("tiktoken.model", ranks(*words), kimi),
    }


def write(folder: Path) -> dict[str, Path]:
    """Writes each case into a folder of its own, and the texts; the folders by name."""
    files: dict[str, dict[str, Any]] = {}
    for name, (content, settings) in json_cases().items():
        files[name] = {"tokenizer.json": content, SETTINGS: settings}
    for name, (model, settings, more) in spm_cases().items():
        files[name] = {"tokenizer.model": model, SETTINGS: settings, **({"added_tokens.json": more} if more else {})}
    for name, (file, lines, settings) in tiktoken_cases().items():
        files[name] = {file: lines.encode(), SETTINGS: settings}
    for name, contents in files.items():
        (folder / name).mkdir(parents=True)
        for file, value in contents.items():
            (folder / name / file).write_bytes(value if isinstance(value, bytes) else json.dumps(value).encode())
    (folder / "texts.json").write_text(json.dumps(TEXTS))
    return {name: folder / name for name in files}


if __name__ == "__main__":
    write(Path(sys.argv[1]))
