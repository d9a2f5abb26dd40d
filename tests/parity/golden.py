"""The published models' own results for five prompts, and the measures by which ours must agree with them.

In fp32: logits within 2e-4 and the same greedy tokens wherever the margin exceeds 1e-3. In half precision, with d the
mean over the vocabulary of |logit - published fp32 logit| at a position: the median of d at most 1.25 times that of the
published code in the same dtype, and the share of positions with d > 0.1 at most 1.5 times its share plus 1 %.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

PROMPTS = range(5)
FP32_TOLERANCE = 2e-4
GREEDY_MARGIN = 1e-3
FLIPPED = 0.1


@dataclass(frozen=True)
class Golden:
    """One golden checkpoint: a folder with model.safetensors and golden.safetensors."""

    path: Path

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        return load_file(self.path / "golden.safetensors")

    @cached_property
    def prompts(self) -> list[list[int]]:
        return [self.tensors[f"input_ids_{k}"].tolist() for k in PROMPTS]

    def greedy(self, k: int) -> list[int]:
        return self.tensors[f"greedy_fp32_{k}"].tolist()

    def check_logits(self, ours: list[Tensor], dtype: str) -> None:
        """`ours[k]`: [T, V] float32 of prompt k."""
        if dtype == "fp32":
            for k, logits in enumerate(ours):
                error = (logits - self.tensors[f"logits_fp32_{k}"]).abs().max().item()
                assert error <= FP32_TOLERANCE, f"prompt {k}: logits are off by {error:.1e}"
            return
        self.check_deviation(self._deviation(ours), dtype)

    def check_deviation(self, mine: Tensor, dtype: str) -> None:
        """`mine`: [T] d at positions of any text, in half precision."""
        theirs = self._deviation([self.tensors[f"logits_{dtype}_{k}"] for k in PROMPTS])
        assert mine.median() <= 1.25 * theirs.median(), f"median {mine.median():.5f} against {theirs.median():.5f}"
        flipped, published = _share(mine), _share(theirs)
        assert flipped <= 1.5 * published + 0.01, f"{flipped:.4f} of the positions flipped against {published:.4f}"

    def check_last(self, k: int, ours: Tensor, dtype: str) -> None:
        """`ours`: [V], the logits after the whole prompt k, however the engine came by them."""
        error = (ours - self.tensors[f"logits_fp32_{k}"][-1]).abs()
        if dtype == "fp32":
            assert error.max() <= FP32_TOLERANCE, f"prompt {k}: last logits are off by {error.max():.1e}"
            return
        theirs = self._deviation([self.tensors[f"logits_{dtype}_{j}"] for j in PROMPTS]).max()
        assert error.mean() <= 1.5 * theirs, (
            f"prompt {k}: last logits deviate by {error.mean():.4f}, theirs {theirs:.4f}"
        )

    def check_greedy(self, k: int, ours: list[int]) -> None:
        """The same tokens up to the first whose margin is too small to say which is right."""
        margins = self.tensors[f"greedy_margin_{k}"].tolist()
        for i, (mine, theirs, margin) in enumerate(zip(ours, self.greedy(k), margins, strict=True)):
            if mine != theirs:
                assert margin <= GREEDY_MARGIN, f"prompt {k}, token {i}: {mine} against {theirs}, margin {margin:.4f}"
                return

    def _deviation(self, logits: list[Tensor]) -> Tensor:
        published = [self.tensors[f"logits_fp32_{k}"] for k in PROMPTS]
        return torch.cat([(a - b).abs().mean(dim=1) for a, b in zip(logits, published, strict=True)])


def _share(deviation: Tensor) -> float:
    return (deviation > FLIPPED).float().mean().item()
