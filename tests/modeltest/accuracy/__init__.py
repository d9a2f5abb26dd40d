"""The accuracy modes: question sets, asked and scored; see README.md."""

from __future__ import annotations

from modeltest.accuracy.run import run_set
from modeltest.accuracy.sets import SETS
from modeltest.command.cases import Options, Run


def run_accuracy(run: Run, options: Options) -> int:
    """Run the set of a full_ mode -> exit status 0. Raises what `run_set` does."""
    assert run.set is not None
    return run_set(SETS[run.set], run, options)
