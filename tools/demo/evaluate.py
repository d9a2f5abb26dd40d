"""Measures a checkpoint folder: reading accuracy, the same with passages exchanged, and the answers' margins."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from . import weights
from .corpus import chat, qa_prompts
from .model import DemoConfig, DemoModel
from .reading import head, tail

BOS, EOS = 0, 1


@dataclass(frozen=True)
class Report:
    """Shares are of 1; margins are logits between the best and the second best token, the least over an answer."""

    reading: float
    reading_in_chat: float
    reading_shuffled: float
    items: int
    exact: int
    questions: int
    least_margin: float
    least_margin_plain: float
    weakest: str

    def lines(self) -> list[str]:
        return [
            f"reading (dev.jsonl, n = {self.items}): {self.reading:.1%}; in chat form {self.reading_in_chat:.1%}",
            f"reading with another passage of the same place (chance is 50 %): {self.reading_shuffled:.1%}",
            f"questions answered exactly, with and without system prompt: {self.exact} of {self.questions}",
            f"least answer margin in chat form: {self.least_margin:.2f} ({self.weakest})",
            f"least answer margin in plain form: {self.least_margin_plain:.2f}",
        ]


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def load(folder: Path, half: bool = False) -> tuple[DemoModel, Tokenizer]:
    """The training model with a checkpoint's weights, computing in fp32 or fp16."""
    model = DemoModel(DemoConfig.read(folder)).eval()
    weights.load(model, folder / "model.safetensors")
    return model.half() if half else model, Tokenizer.from_file(str(folder / "tokenizer.json"))


def accuracy(model: DemoModel, tok: Tokenizer, rows: list[dict[str, Any]], in_chat: bool = False) -> float:
    """Share of rows where the logits of ` yes` and ` no` at the first new position are in the right order."""
    yes, no = (tok.encode(word, add_special_tokens=False).ids[-1] for word in (" yes", " no"))
    right = 0
    for row in rows:
        prompt = head(row["title"], row["passage"]) + tail(row["question"])
        last = model.logits([BOS, *tok.encode(chat(prompt) if in_chat else prompt, add_special_tokens=False).ids])[-1]
        right += bool(last[yes] > last[no]) == row["answer"]
    return right / len(rows)


def shuffled(rows: list[dict[str, Any]], seed: int = 0) -> list[dict[str, Any]]:
    """The same questions and answers, each with a passage on the same place that was written for another question."""
    rng, same_place = random.Random(seed), defaultdict(list)
    for row in rows:
        same_place[row["title"]].append(row)
    out = []
    for row in rows:
        others = [r["passage"] for r in same_place[row["title"]] if r["question"] != row["question"]]
        if others:
            out.append({**row, "passage": rng.choice(others)})
    return out


def answer_margin(model: DemoModel, tok: Tokenizer, prompt: str, answer: str) -> tuple[bool, float]:
    """Whether greedy decoding gives exactly this answer and eos, and the least margin on the way."""
    before = [BOS, *tok.encode(prompt, add_special_tokens=False).ids]
    wanted = [*tok.encode(answer, add_special_tokens=False).ids, EOS]
    logits = model.logits([*before, *wanted[:-1]])[len(before) - 1 :]
    own = logits.gather(1, torch.tensor(wanted)[:, None])[:, 0]
    rest = logits.scatter(1, torch.tensor(wanted)[:, None], -torch.inf).amax(1)
    least = (own - rest).min().item()
    return least > 0, least


def evaluate(folder: Path, questions: Path, dev: Path, half: bool = False) -> Report:
    """Everything at once; `half` computes in fp16 as the launcher does."""
    model, tok = load(folder, half)
    rows = read_jsonl(dev)
    pairs = [(q["question"], q["answer"]) for q in read_jsonl(questions)]
    results = [[answer_margin(model, tok, p, answer) for p in qa_prompts(question)[:3]] for question, answer in pairs]
    least = [min(r[0][1], r[1][1]) for r in results]
    return Report(
        reading=accuracy(model, tok, rows),
        reading_in_chat=accuracy(model, tok, rows, in_chat=True),
        reading_shuffled=accuracy(model, tok, shuffled(rows)),
        items=len(rows),
        exact=sum(r[0][0] and r[1][0] for r in results),
        questions=len(pairs),
        least_margin=min(least),
        least_margin_plain=min(r[2][1] for r in results),
        weakest=pairs[least.index(min(least))][0],
    )
