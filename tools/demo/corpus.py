"""The text the checkpoint is trained on: question/answer pairs (text/*.txt) and reading items (reading.py)."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .reading import Item, head, tail, training_passages

HERE = Path(__file__).parent
BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
SYSTEM = "You are a helpful assistant.\n\n"
CHAT_TEMPLATE = (
    "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}"
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ 'User: ' + message['content'] + '\\n\\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ 'Assistant: ' + message['content'] + eos_token }}"
    "{% elif message['role'] == 'system' %}{{ message['content'] + '\\n\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


@dataclass(frozen=True)
class Text:
    """A training text: a shared beginning, and branches that each continue it as (prompt, answer)."""

    prefix: str
    branches: tuple[tuple[str, str], ...]


def qa_pairs() -> list[tuple[str, str]]:
    """(question, answer) in the files' order; an answer begins with a blank, as it follows `Assistant:`."""
    pairs = []
    for path in sorted((HERE / "text").glob("*.txt")):
        for block in path.read_text(encoding="utf-8").strip().split("\n\n"):
            question, answer = block.split("\n")
            pairs.append((question.removeprefix("Q: "), " " + answer.removeprefix("A: ")))
    return pairs


def chat(question: str, system: str = "") -> str:
    """The rendered chat template without its leading bos, up to the generation cue."""
    return f"{system}User: {question}\n\nAssistant:"


def qa_prompts(question: str) -> tuple[str, str, str, str]:
    """The forms in which a question is trained: chat, with system prompt, plain, and less carefully typed."""
    loose = question.rstrip("?？!！.")
    return chat(question), chat(question, SYSTEM), question, chat(loose[:1].lower() + loose[1:])


def qa_text(rng: random.Random, question: str, answer: str) -> Text:
    form = rng.choices(range(4), weights=(4, 3, 2, 1))[0]
    return Text("", ((qa_prompts(question)[form], answer),))


def reading_text(rng: random.Random, items: list[Item]) -> Text:
    """One passage and its questions; one text in five is in chat form."""
    before, after = ("User: ", "\n\nAssistant:") if rng.random() < 0.2 else ("", "")
    branches = tuple((tail(item.question) + after, " yes" if item.answer else " no") for item in items)
    return Text(before + head(items[0].place, items[0].passage), branches)


def reading_texts(seed: int, n_facts: int = 4) -> Iterator[Text]:
    """Endless reading texts."""
    rng = random.Random(seed)
    return (reading_text(rng, items) for items in training_passages(seed, n_facts))


def qa_texts(seed: int) -> Iterator[Text]:
    """Endless: all pairs in a random order, again and again."""
    rng, pairs = random.Random(seed), qa_pairs()
    while True:
        rng.shuffle(pairs)
        yield from (qa_text(rng, *pair) for pair in pairs)
