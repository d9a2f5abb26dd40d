"""ATB_LLM_LOGITS_SAVE_ENABLE: the logits of every step in a file, for comparing runs."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from atb_models.engine.llm import StepHook
from atb_models.engine.scheduler import Row
from atb_models.files import written_whole


def logits_saver(folder: Path) -> StepHook:
    """A hook for `Engine.on_step` that writes logits_<n>.pth into `folder`.

    The file holds the step's logits [L, V] in float32 on the CPU, one row for each request that got a token, in the
    step's order; n is the number of tokens that the first of them had produced before. A later step with the same n
    replaces the file. Steps that only compute part of a prompt write nothing.
    """

    def save(rows: list[Row], logits_LV: Tensor, tokens: list[int]) -> None:
        first = next((row for row in rows if row.num_logits), None)
        if first is None:
            return
        produced = len(first.seq.output_token_ids)
        with written_whole(folder / f"logits_{produced}.pth") as path:
            torch.save(logits_LV.detach().to("cpu", torch.float32), path)

    return save
