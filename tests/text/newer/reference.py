"""What a newer transformers makes of the tokenizers in cases.py, as JSON: the program that wrote ids.json.

    python -m tests.text.newer.cases CASES
    NEWER/bin/python tests/text/newer/reference.py CASES [CODE] > tests/text/newer/ids.json

NEWER: an environment with transformers 4.57.6, sentencepiece, tiktoken and protobuf. CODE: a folder with the published
tokenization_qwen.py (of Qwen-7B) and tokenization_kimi.py (of Kimi-K2), which transformers does not have.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

os.environ["TRANSFORMERS_VERBOSITY"] = "error"

# Where LlamaTokenizerFast differs from SentencePiece itself: it seeks tokens of added_tokens.json in a text with its
# blanks written as signs, and takes the text "<0xE4>" for that byte.
SLOW = ("spm legacy", "spm unigram")


def answers(tokenizer: Any, encode: Callable[[str], list[int]], texts: list[str]) -> dict[str, Any]:
    """The ids of each text, and their text with special tokens and without."""
    ids = [encode(text) for text in texts]
    options: dict[str, Any] = {"clean_up_tokenization_spaces": False}
    return {
        "class": type(tokenizer).__name__,
        "ids": ids,
        "shown": [tokenizer.decode(one, skip_special_tokens=False, **options) for one in ids],
        "hidden": [tokenizer.decode(one, skip_special_tokens=True, **options) for one in ids],
    }


def of_transformers(folder: Path, texts: list[str]) -> dict[str, Any]:
    """By AutoTokenizer."""
    from transformers import AutoTokenizer

    fast = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    encoder = fast
    if folder.name in SLOW:
        encoder = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, use_fast=False)
    return answers(fast, encoder.encode, texts)


def of_code(folder: Path, texts: list[str]) -> dict[str, Any]:
    """By the published classes. Qwen's has the id of its first special token as a number, that of its own file."""
    from tokenizers import AddedToken

    settings = json.loads((folder / "tokenizer_config.json").read_text())
    name = settings.pop("tokenizer_class")
    if name == "QWenTokenizer":
        module = import_module("tokenization_qwen")
        file = folder / "qwen.tiktoken"
        first = len(file.read_text().splitlines())
        texts_of_tokens = (module.ENDOFTEXT, module.IMSTART, module.IMEND, *module.EXTRAS)
        vars(module)["SPECIAL_TOKENS"] = tuple(enumerate(texts_of_tokens, start=first))
        tokenizer = module.QWenTokenizer(str(file))
    else:
        listed = settings.pop("added_tokens_decoder")
        tokens = {int(key): AddedToken(one["content"], special=one["special"]) for key, one in listed.items()}
        kind = import_module("tokenization_kimi").TikTokenTokenizer
        tokenizer = kind(str(folder / "tiktoken.model"), added_tokens_decoder=tokens, **settings)
    return answers(tokenizer, tokenizer.encode, texts)


def main() -> None:
    cases = Path(sys.argv[1])
    if len(sys.argv) > 2:
        sys.path.insert(0, sys.argv[2])
    texts = json.loads((cases / "texts.json").read_text())
    found = {}
    for folder in sorted(path for path in cases.iterdir() if path.is_dir()):
        if not folder.name.endswith("tiktoken"):
            found[folder.name] = of_transformers(folder, texts)
        elif len(sys.argv) > 2:
            found[folder.name] = of_code(folder, texts)
    print("{")
    rows = (f"{json.dumps(name)}: {json.dumps(row, ensure_ascii=False)}" for name, row in found.items())
    print(",\n".join(rows) + "\n}")


if __name__ == "__main__":
    main()
