"""A request that the model cannot go on with ends a run: it is neither a wrong answer nor a time."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from atb_models import RequestOutput, SamplingParams
from atb_models.errors import AtbError
from modeltest.accuracy.asking import choose, logprobs_of, write
from modeltest.speed.measure import measure
from tests.harness.stand_in import StandIn

WHY = "not one of the model's logits is a number"


class Failing(StandIn):
    """The second request of each call ends with an error."""

    def generate(self, *args: Any) -> list[RequestOutput]:
        outputs = super().generate(*args)
        outputs[1].finish_reason, outputs[1].error = "error", WHY
        outputs[1].logprobs, outputs[1].prompt_logprobs = [], None
        return outputs


def test_questions() -> None:
    model = Failing()
    said = f"request 1 ended with an error after 0 tokens: {WHY}"
    with pytest.raises(AtbError, match=said):
        write(model, ["a", "b"], 3, chat=False)
    with pytest.raises(AtbError, match=said):
        choose(model, ["a", "b"], {"yes": "y", "no": "n"}, chat=False)
    with pytest.raises(AtbError, match=said):
        logprobs_of(model, [([1], [97]), ([1], [98])])


def test_times() -> None:
    model = Failing()
    llm: Any = SimpleNamespace(reset_timings=lambda: None, metrics=dict, device=torch.device("cpu"), on_step=None)
    with pytest.raises(AtbError, match=WHY):
        measure(llm, lambda: model.generate([[97], [98]], SamplingParams(max_tokens=3)), 3)
