"""Tokenizer folders, each broken in its own way: a seed gives the same folder everywhere."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path
from random import Random

from tokenizers import Tokenizer as JsonTokenizer
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from atb_models.demo import demo_path
from tests.broken.damage import damaged_bytes, damaged_values

TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m['content'] | trim }}\n{% endfor %}"
LLAMA = {
    "tokenizer_class": "LlamaTokenizerFast",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "add_eos_token": False,
    "extra_special_tokens": {"image_token": "<img>"},
    "chat_template": [{"name": "default", "template": "x"}],
}
MAP = {"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": False}, "additional_special_tokens": ["<a>"]}


def broken_folder(seed: int, folder: Path) -> str:
    """Write the folder of a seed; which of its files was damaged."""
    random = Random(seed)
    folder.mkdir()
    whole = _byte_fallback() if random.random() < 0.5 else _demo()
    for name, data in whole.items():
        (folder / name).write_bytes(data)
    name = random.choice(("tokenizer.json", *whole))  # the one with the most to break twice as often
    path = folder / name
    if random.random() < 0.04:
        _misplace(path, random)
    elif name.endswith(".json") and random.random() < 0.7:
        path.write_text(damaged_values(whole[name].decode(), random), encoding="utf-8", errors="surrogatepass")
    else:
        path.write_bytes(damaged_bytes(whole[name], random))
    return name


def _misplace(path: Path, random: Random) -> None:
    """Something that is no such file."""
    path.unlink()
    kind = random.randrange(4)
    if kind == 0:
        path.mkdir()
    elif kind == 1:
        path.symlink_to(path.with_name("gone"))
    elif kind == 2:
        path.write_bytes(b"")
    else:
        path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


def _files(tokenizer: str, settings: dict[str, object]) -> dict[str, bytes]:
    config = (demo_path() / "config.json").read_bytes()
    return {
        "tokenizer.json": tokenizer.encode(),
        "tokenizer_config.json": json.dumps(settings, indent=1).encode(),
        "special_tokens_map.json": json.dumps(MAP).encode(),
        "chat_template.jinja": TEMPLATE.encode(),
        "config.json": config,
    }


@cache
def _demo() -> dict[str, bytes]:
    """The embedded checkpoint's, which is byte-level, with a list of added tokens."""
    text = (demo_path() / "tokenizer.json").read_text(encoding="utf-8")
    settings = json.loads((demo_path() / "tokenizer_config.json").read_text(encoding="utf-8"))
    listed = {str(token.pop("id")): token for token in json.loads(text)["added_tokens"]}
    return _files(text, settings | {"added_tokens_decoder": listed})


@cache
def _byte_fallback() -> dict[str, bytes]:
    """One in the manner of Llama and XVERSE, with a part of each kind that tokenizer.json may have."""
    letters = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdefgh你好", "ab", "▁a"]
    vocab = {piece: index for index, piece in enumerate(letters)}
    model = models.BPE(vocab, [("a", "b"), ("▁", "a")], unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = JsonTokenizer(model)
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.Punctuation()])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.enable_truncation(512)
    tokenizer.enable_padding()
    return _files(tokenizer.to_str(), LLAMA)


def clear(folder: Path) -> None:
    """Remove what `broken_folder` has made."""
    shutil.rmtree(folder)
