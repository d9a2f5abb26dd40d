"""The byte-level BPE tokenizer: trained on the corpus, written in Hugging Face's layout."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from .corpus import BOS, CHAT_TEMPLATE, EOS, qa_pairs, qa_prompts, reading_texts


def train_tokenizer(size: int, seed: int) -> Tokenizer:
    """A tokenizer of at most `size` entries: bos 0, eos 1, all 256 bytes (so any text round-trips), then merges."""
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex("[\r\n]"), "isolated"),
            pre_tokenizers.Split(Regex("[一-龥]"), "isolated"),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=2,
        special_tokens=[AddedToken(text, special=True, normalized=False) for text in (BOS, EOS)],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tok.train_from_iterator(training_text(seed), trainer)
    tok.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, 0)]
    )
    return tok


def training_text(seed: int) -> list[str]:
    """Every question and answer (weighted, so that whole words win) and a sample of reading items."""
    lines = []
    for question, answer in qa_pairs():
        lines += [*qa_prompts(question), answer, answer, answer]
    for text in itertools.islice(reading_texts(seed), 1500):
        lines.append(text.prefix)
        lines += [prompt + answer for prompt, answer in text.branches]
    return lines


def save_tokenizer(tok: Tokenizer, folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json, the latter in DeepSeek's spelling."""
    tok.save(str(folder / "tokenizer.json"))
    token = {"__type": "AddedToken", "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    config = {
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": {**token, "content": BOS},
        "clean_up_tokenization_spaces": False,
        "eos_token": {**token, "content": EOS},
        "legacy": True,
        "model_max_length": 8192,
        "pad_token": {**token, "content": EOS},
        "sp_model_kwargs": {},
        "unk_token": None,
        "tokenizer_class": "LlamaTokenizerFast",
        "chat_template": CHAT_TEMPLATE,
    }
    text = json.dumps(config, ensure_ascii=False, indent=2) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")
