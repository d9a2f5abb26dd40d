"""How long the engine's running step has taken, and how long it may take before the engine counts as stuck."""

from __future__ import annotations

from collections import defaultdict, deque
from time import monotonic

from atb_models.server.messages import Load

LEAST_S = 10.0  # that any step may take
FIRST_S = 600.0  # for a step before any was measured: compilers and caches may be at work
PATIENCE = 4.0  # times what the slowest of the steps of its size took lately
REMEMBERED = 16  # steps of each size


class Pace:
    """Times of the steps by size: the bits of their number of prompt tokens, 0 for a step of decodes only.

    A step is allowed `PATIENCE` times the slowest of the last steps of its size; where none of its size was measured,
    of the next larger ones, or in proportion of the largest; never less than `LEAST_S`.
    """

    def __init__(self) -> None:
        self._seconds: dict[int, deque[float]] = defaultdict(lambda: deque(maxlen=REMEMBERED))
        self._load = Load()
        self._began_s: float | None = None  # of the running step; None while the engine has nothing to do
        self.prompt_tokens = 0  # of the running step

    def began(self, prompt_tokens: int) -> None:
        """A step with so many prompt tokens runs."""
        self._began_s, self.prompt_tokens = monotonic(), prompt_tokens

    def stepped(self, load: Load) -> None:
        """A step has ended, or the engine was asked; where requests run, the next step runs now."""
        if load.steps == self._load.steps + 1:
            step_s = load.host_s + load.run_s - self._load.host_s - self._load.run_s
            self._seconds[self.prompt_tokens.bit_length()].append(step_s)
        self._load, self.prompt_tokens = load, 0
        self._began_s = monotonic() if load.running + load.waiting else None

    @property
    def age_s(self) -> float | None:
        """Of the running step; None while the engine has nothing to do."""
        return None if self._began_s is None else monotonic() - self._began_s

    @property
    def allowed_s(self) -> float:
        """For the running step."""
        return max(LEAST_S, FIRST_S if (expected := self._expected_s()) is None else PATIENCE * expected)

    def _expected_s(self) -> float | None:
        """What the running step may take as measured; None before a step was."""
        size = self.prompt_tokens.bit_length()
        if not self._seconds:
            return None
        if larger := [measured for measured in self._seconds if measured >= size]:
            return max(self._seconds[min(larger)])
        largest = max(self._seconds)
        return max(self._seconds[largest]) * self.prompt_tokens / 2 ** max(0, largest - 1)
