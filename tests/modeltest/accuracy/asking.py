"""The three ways to ask a model: to choose, to write, and how probable it finds a text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from atb_models import RequestOutput, SamplingParams
from atb_models.errors import AtbError, ConfigError
from modeltest.accuracy.questions import LanguageModel


@dataclass(frozen=True)
class Choice:
    """label: the most probable choice, the first of equal ones. logprobs: natural, of each label."""

    label: str
    logprobs: dict[str, float]
    output: RequestOutput


@dataclass(frozen=True)
class Continuation:
    """A text after a prompt: its tokens and the sum of their log-probabilities."""

    token_ids: list[int]
    logprob: float


def choose(model: LanguageModel, prompts: Sequence[str], words: Mapping[str, str], *, chat: bool) -> list[Choice]:
    """Which of `words` (label -> word) the model would begin its answer with, of each prompt.

    Compared are the log-probabilities of the first new token, float32 over the full vocabulary. A word's token is the
    last of a sentence that ends with a blank and the word, as tokens have the blank before them.
    """
    ids = {label: encode(model, f"Answer: {word}", special=False)[-1] for label, word in words.items()}
    if len(set(ids.values())) < len(ids):
        raise ConfigError(f"the tokenizer ends {', '.join(words.values())} with the same token; choose another set")
    params = SamplingParams(max_tokens=1, temperature=0, ignore_eos=True, logprob_token_ids=list(ids.values()))
    choices = []
    for output in model.generate([prompt_ids(model, prompt, chat=chat) for prompt in prompts], params):
        output.raise_for_error()
        assert output.logprobs is not None
        logprobs = {label: _finite(output.logprobs[0][token]) for label, token in ids.items()}
        choices.append(Choice(max(logprobs, key=logprobs.__getitem__), logprobs, output))
    return choices


def write(
    model: LanguageModel, prompts: Sequence[str], max_tokens: int, *, chat: bool, stop: Sequence[str] = ()
) -> list[RequestOutput]:
    """What the model writes after each prompt: the most probable tokens, whatever generation_config.json asks for."""
    params = SamplingParams(
        max_tokens=max_tokens,
        temperature=0,
        repetition_penalty=1,
        presence_penalty=0,
        frequency_penalty=0,
        stop=list(stop),
    )
    outputs = model.generate([prompt_ids(model, prompt, chat=chat) for prompt in prompts], params)
    for output in outputs:
        output.raise_for_error()
    return outputs


def continuations(
    model: LanguageModel, prompt: str, texts: Sequence[str], *, chat: bool
) -> list[tuple[list[int], list[int]]]:
    """Token ids of `prompt` with each text behind it, split where they begin to differ from those of the prompt alone.

    So every token that the text changes is the text's, also one that spans both.
    """
    tokenizer = _tokenizer(model)
    if chat:
        prompt = tokenizer.render_chat([{"role": "user", "content": prompt}])
    alone = encode(model, prompt, special=not chat)
    split = []
    for text in texts:
        ids = encode(model, prompt + text, special=not chat)
        same = next((i for i, (a, b) in enumerate(zip(alone, ids, strict=False)) if a != b), min(len(alone), len(ids)))
        split.append((ids[:same], ids[same:]))
    return split


def logprobs_of(model: LanguageModel, pairs: Sequence[tuple[list[int], list[int]]]) -> list[float]:
    """log P(second | first) of each pair of token ids, summed over the second's tokens."""
    outputs = model.generate(
        [[*first, *second] for first, second in pairs],
        SamplingParams(max_tokens=1, temperature=0, ignore_eos=True, prompt_logprobs=0),
    )
    sums = []
    for (first, second), output in zip(pairs, outputs, strict=True):
        output.raise_for_error()
        assert output.prompt_logprobs is not None
        found: list[Any] = output.prompt_logprobs[len(first) :]
        sums.append(_finite(math.fsum(at[token] for at, token in zip(found, second, strict=True))))
    return sums


def prompt_ids(model: LanguageModel, text: str, *, chat: bool) -> list[int]:
    """Token ids of a question; chat: as the user's turn in the checkpoint's chat template."""
    if chat:
        return list(_tokenizer(model).apply_chat_template([{"role": "user", "content": text}]))
    return encode(model, text)


def encode(model: LanguageModel, text: str, *, special: bool = True) -> list[int]:
    return list(_tokenizer(model).encode(text, add_special_tokens=special))


def _tokenizer(model: LanguageModel) -> Any:
    if model.tokenizer is None:
        raise ConfigError("the accuracy modes need the checkpoint's tokenizer files, and its folder has none")
    return model.tokenizer


def _finite(logprob: float) -> float:
    """A model that overflows must not pass as one that answers."""
    if not math.isfinite(logprob):
        raise AtbError(f"the model gives a log-probability of {logprob}; try the other dtype (pa_bf16 for pa_fp16)")
    return logprob
