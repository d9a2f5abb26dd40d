"""Progress of a long run, on stderr."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from tqdm import tqdm

TENTHS = 10


class Bar:
    """A context manager: a bar with the time left on a terminal, else a line at each tenth of the way."""

    def __init__(self, total: int, description: str, done: int = 0) -> None:
        """total: steps in all; done: those of an earlier run that is continued."""
        self._total, self._description, self._done, self._first = total, description, done, done
        self._note, self._start = "", time.monotonic()
        self._bar: tqdm | None = None
        if sys.stderr.isatty():
            self._bar = tqdm(total=total, desc=description, initial=done, dynamic_ncols=True, file=sys.stderr)

    def update(self, steps: int = 1) -> None:
        """So many more steps are done."""
        before, self._done = self._done, self._done + steps
        if self._bar is not None:
            self._bar.update(steps)
        elif self._total and self._done * TENTHS // self._total > before * TENTHS // self._total:
            print(self._line(), file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        """What stands behind the bar, as in "accuracy 0.81"; say it before `update`."""
        self._note = text
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> Bar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _line(self) -> str:
        """As "full_BoolQ: 40/400, 1 min 2 s left, accuracy 0.81"."""
        seconds = (time.monotonic() - self._start) * (self._total - self._done) / (self._done - self._first)
        parts = [f"{self._done}/{self._total}", f"{duration(seconds)} left" if self._done < self._total else "done"]
        return f"{self._description}: {', '.join([*parts, *filter(None, [self._note])])}"


def duration(seconds: float) -> str:
    """As "2 h 5 min", "1 min 2 s" or "3 s"."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
