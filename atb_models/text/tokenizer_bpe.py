"""Qwen's tokenizer from vocab.json and merges.txt, for a checkpoint without tokenizer.json."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from atb_models.errors import CheckpointError
from atb_models.files import read_lines
from atb_models.json_file import check_present, read_json
from atb_models.text.tokenizer_check import check_merges, check_vocab, library_errors

if TYPE_CHECKING:
    from tokenizers import Tokenizer as JsonTokenizer

QWEN_FILES = ("vocab.json", "merges.txt")
# A contraction; letters with one other character before them; one digit; marks; line ends; other blanks.
QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def qwen_tokenizer(folder: Path) -> JsonTokenizer:
    """Byte-level BPE over NFC text, cut into words as by Qwen2Tokenizer. Raises CheckpointError for a damaged file."""
    from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors
    from tokenizers import Tokenizer as JsonTokenizer

    vocab_path, merges_path = (folder / name for name in QWEN_FILES)
    check_present(merges_path)
    vocab = read_json(vocab_path)
    check_vocab(vocab_path, vocab, "the vocabulary")
    lines = read_lines(merges_path, error=CheckpointError)
    merges = [line for number, line in enumerate(lines) if line and not (number == 0 and line.startswith("#version"))]
    check_merges(merges_path, merges, vocab, name="merges")
    with library_errors(f"{vocab_path} and {merges_path.name} cannot be read"):
        tokenizer = JsonTokenizer(models.BPE(vocab, [tuple(merge.split(" ")) for merge in merges]))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
