"""A step between its halves, and what executes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from atb_models.engine.scheduler import Row


class Runner(Protocol):
    """What executes a step: float32 logits [L, V] of each row's last `num_logits` tokens, in row order.

    gives_top_logits: it can give the keys of the greatest of them instead, see `ops.top_logits`.
    """

    gives_top_logits: bool

    def run(self, rows: list[Row], top_logits: int = 0) -> Tensor:
        """Start the step; its logits, or so many keys of each row, which may still be in the making.

        A device that works by itself is only started here, and whoever reads the logits waits for it; on a CPU all the
        work may be done here. The rows' sequences and their blocks may change as soon as this returns, so what the
        step needs of them has been copied by then.
        """


@dataclass(slots=True)
class Launched:
    """A step that was started. is_prefill: with any prompt chunk. launch_s: seconds of `launch`, run_s: of its run.

    top_logits: how many of the greatest logits there are in the place of all, as keys; 0: all.
    """

    rows: list[Row]
    logits_LV: Tensor
    top_logits: int
    is_prefill: bool
    launch_s: float
    run_s: float
