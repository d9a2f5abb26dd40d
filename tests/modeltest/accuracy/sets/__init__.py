"""The question sets by name."""

from __future__ import annotations

from modeltest.accuracy.questions import QuestionSet
from modeltest.accuracy.sets import boolq, ceval, cmmlu, gsm8k, humaneval, mmlu, truthfulqa

_ALL = (boolq.SET, gsm8k.SET, mmlu.SET, ceval.SET, cmmlu.SET, truthfulqa.SET, humaneval.SET)
SETS: dict[str, QuestionSet] = {one.name: one for one in _ALL}
