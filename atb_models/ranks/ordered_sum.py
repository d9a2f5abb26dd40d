"""The sum that makes every rank's all-reduce give the same bits."""

from __future__ import annotations

import contextvars
import functools
from collections.abc import Callable

import numpy as np


def ordered_sum(rows: list[np.ndarray], total: np.ndarray) -> None:
    """Sum in the order of the rows; a loop, because numpy's and torch's own reductions promise no order."""
    np.add(rows[0], rows[1], total)
    for row in rows[2:]:
        np.add(total, row, total)


def quiet_sum() -> Callable[[list[np.ndarray], np.ndarray], None]:
    """`ordered_sum` that passes on infinities and NaNs without numpy's warnings, as torch does. For one thread."""
    if int(np.__version__.split(".")[0]) < 2:
        return np.errstate(all="ignore")(ordered_sum)
    # numpy 2 keeps this setting in the context: entering one that has it costs a tenth of making it each time.
    context = contextvars.copy_context()
    context.run(np.seterr, all="ignore")
    run: Callable[..., None] = context.run
    return functools.partial(run, ordered_sum)
