"""The question sets by name."""

from __future__ import annotations

from modeltest.accuracy import boolq, ceval, cmmlu, gsm8k, humaneval, mmlu, truthfulqa
from modeltest.accuracy.questions import QuestionSet

_ALL = (boolq.SET, gsm8k.SET, mmlu.SET, ceval.SET, cmmlu.SET, truthfulqa.SET, humaneval.SET)
SETS: dict[str, QuestionSet] = {one.name: one for one in _ALL}
