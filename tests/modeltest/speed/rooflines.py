"""The plan's bounds of the batches that are measured."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from atb_models import LLM
from atb_models.bounds import Batch, Bound, roofline
from modeltest.command.cases import Options

logger = logging.getLogger("atb_models.modeltest")


@dataclass(frozen=True)
class Bounds:
    """By batch. chip: the chip's name; None: there is none, and `reason` says why."""

    chip: str | None
    reason: str
    of: dict[Batch, Bound]

    def facts(self) -> dict[str, Any]:
        """As the record has them."""
        return {"chip": self.chip, "chip_reason": self.reason}


def bounds(llm: LLM, batches: Iterable[Batch], options: Options) -> Bounds:
    """Logs which chip it is, or why there is none. Raises ConfigError for an unknown --chip or a bad --chips_file."""
    asked = list(dict.fromkeys(batches))
    found = roofline(llm, asked, chip=options.chip, chips_file=options.chips_file)
    if found.chip is None:
        logger.warning("no roofline to compare with: %s", found.reason)
        return Bounds(None, found.reason, {})
    logger.info("roofline of %s", found.chip)
    return Bounds(found.chip, "", dict(zip(asked, found.times, strict=True)))
