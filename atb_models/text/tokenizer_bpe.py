"""Qwen's tokenizer from vocab.json and merges.txt, for a checkpoint without tokenizer.json."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from atb_models.errors import CheckpointError
from atb_models.json_file import check_present

if TYPE_CHECKING:
    from tokenizers import Tokenizer as JsonTokenizer

QWEN_CLASSES = frozenset(("Qwen2Tokenizer", "Qwen2TokenizerFast"))
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

    vocab, merges = (folder / name for name in QWEN_FILES)
    for path in (vocab, merges):
        check_present(path)
    try:
        tokenizer = JsonTokenizer(models.BPE.from_file(str(vocab), str(merges)))
    except Exception as error:  # the library raises plain Exception
        raise CheckpointError(f"{vocab} and {merges.name} cannot be read: {error}") from error
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
