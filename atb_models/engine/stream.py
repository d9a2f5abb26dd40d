"""The outputs of one call, step by step."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from atb_models.engine.engine import Engine
from atb_models.engine.sequence import Sequence
from atb_models.outputs import RequestOutput


class OutputStream(Iterator[RequestOutput]):
    """Runs the engine as it is read. Whatever ends it early - an error, Ctrl-C, `close()` - aborts what still runs."""

    def __init__(self, engine: Engine, sequences: list[Sequence]) -> None:
        self.sequences = sequences
        self._engine = engine
        self._ready: deque[RequestOutput] = deque()

    def __next__(self) -> RequestOutput:
        self._engine.owner.check()
        try:
            while not self._ready:
                if not self._engine.has_work():
                    raise StopIteration
                self._ready.extend(self._engine.step())
        except BaseException:
            self.close()
            raise
        return self._ready.popleft()

    def close(self) -> None:
        """Abort the requests that have not ended; safe to repeat, and without effect in a fork of the process."""
        if not self._engine.owner.is_here:
            return
        for sequence in self.sequences:
            self._engine.abort(sequence.seq_id)

    def __del__(self) -> None:
        self.close()
