"""Tokens given to each expert, written to a file at the end (MINDIE_ENABLE_EXPERT_HOTPOT_GATHER)."""

from __future__ import annotations

import csv
from pathlib import Path

from torch import Tensor

from atb_models import env
from atb_models.engine.model_runner import ModelRunner
from atb_models.files import EXPERT_COUNTS_FOLDER, written_whole
from atb_models.layers.mlp import MoE


class ExpertCounts:
    """The counters of all MoE layers of rank 0, which routes every token as the other ranks do."""

    def __init__(self, counters: dict[int, Tensor], folder: Path) -> None:
        self.counters, self.folder = counters, folder

    @classmethod
    def start(cls, runner: ModelRunner) -> ExpertCounts | None:
        """Start counting if the environment asks for it."""
        if not env.get("MINDIE_ENABLE_EXPERT_HOTPOT_GATHER"):
            return None
        layers = enumerate(layer.mlp for layer in runner.model.layers)
        counters = {i: mlp.count_tokens() for i, mlp in layers if isinstance(mlp, MoE)}
        return cls(counters, env.get("MINDIE_EXPERT_HOTPOT_DUMP_PATH") or EXPERT_COUNTS_FOLDER)

    def save(self) -> None:
        """Write experts.csv: one row for each layer and expert with the tokens it was given. May raise AtbError."""
        with written_whole(self.folder / "experts.csv") as path, path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("layer", "expert", "tokens"))
            for layer, counter in self.counters.items():
                writer.writerows((layer, expert, tokens) for expert, tokens in enumerate(counter.tolist()))
