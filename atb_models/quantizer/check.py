"""What quantisation has changed: the logits of both checkpoints for the same text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from atb_models.quantizer.measuring import ModelRun, prompts_for, running
from atb_models.quantizer.texts import Text

TOKENS = 512  # at most; their logits of one checkpoint are held in memory
_BAND = 64  # rows of logits that are compared at a time


@dataclass
class Comparison:
    """Sums over the tokens of a text.

    difference: of the mean over the vocabulary of |logit - logit before|. agreed: tokens whose largest logit is the
    same one. loss, loss_before: of -log p of each text's next token, of which there are `predicted`.
    """

    tokens: int = 0
    predicted: int = 0
    difference: float = 0.0
    agreed: int = 0
    loss: float = 0.0
    loss_before: float = 0.0

    def add(self, prompt: Sequence[int], before_TV: Tensor, after_TV: Tensor) -> None:
        for start in range(0, len(prompt), _BAND):
            before, after = before_TV[start : start + _BAND], after_TV[start : start + _BAND]
            self.tokens += len(before)
            self.difference += float((after - before).abs().mean(-1).double().sum())
            self.agreed += int((after.argmax(-1) == before.argmax(-1)).sum())
            following = torch.tensor(prompt[start + 1 : start + 1 + _BAND])
            self.predicted += len(following)
            self.loss_before += _loss(before, following)
            self.loss += _loss(after, following)

    def __str__(self) -> str:
        return (
            f"mean absolute difference {self.difference / self.tokens:.4g}, top-1 agreement"
            f" {100 * self.agreed / self.tokens:.2f} %, perplexity {_perplexity(self.loss_before, self.predicted):.5g}"
            f" before, {_perplexity(self.loss, self.predicted):.5g} after"
        )


def compare(before: Path, after: Path, texts: Sequence[Text], run: ModelRun, longest: int) -> tuple[Comparison, str]:
    """ModelRun both checkpoints, one after the other -> the comparison, and how they were run.

    Raises what LLM raises, and ConfigError for texts of which nothing can be made.
    """
    with running(before, run, longest) as llm:
        prompts = prompts_for(llm, texts, TOKENS, "--text")
        kept = [llm.prompt_logits(prompt) for prompt in prompts]
        place = f"{llm._runner.model_config.run_dtype(llm.config.dtype)} on {llm.device.type}"
    comparison = Comparison()
    with running(after, run, longest) as llm:
        for prompt, logits in zip(prompts, kept, strict=True):
            comparison.add(prompt, logits, llm.prompt_logits(prompt))
    return comparison, place


def _loss(logits_TV: Tensor, following: Tensor) -> float:
    rows = logits_TV[: len(following)]
    return float(F.cross_entropy(rows, following, reduction="sum")) if len(following) else 0.0


def _perplexity(loss: float, predicted: int) -> float:
    mean = loss / predicted
    return math.exp(mean) if mean < 700 else math.inf
