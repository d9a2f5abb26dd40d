"""What a rank holds of a dimension that ranks share. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Share:
    """A rank's [start, stop) of a dimension; it may be empty.

    width: of the rank's own tensor, the same on every rank; what lies behind the range is zeros. step: `start` is a
    multiple of it on every rank that holds anything, so that scales of `step` values, or of a divisor, are not cut.
    """

    total: int
    start: int
    stop: int
    width: int
    step: int

    @property
    def span(self) -> tuple[int, int]:
        return self.start, self.stop

    @property
    def padded(self) -> bool:
        """Whether zeros follow the range."""
        return self.stop - self.start < self.width

    def times(self, values: int) -> Share:
        """The same share counted in values, where each item is so many."""
        return Share(
            self.total * values, self.start * values, self.stop * values, self.width * values, self.step * values
        )
