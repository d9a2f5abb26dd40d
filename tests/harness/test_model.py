"""How the engine of a run is opened."""

from __future__ import annotations

from typing import Any

import pytest

from modeltest import model
from modeltest.command.cases import Options
from tests.harness.stand_in import run_of


class Opened(Exception):
    pass


@pytest.mark.parametrize(
    ("mode", "deterministic"), [("full_BoolQ", True), ("precision_single", True), ("performance", False)]
)
def test_answers_that_are_compared_are_the_same_each_time(
    monkeypatch: pytest.MonkeyPatch, mode: str, deterministic: bool
) -> None:
    asked: dict[str, Any] = {}

    def opened(*_: object, **arguments: Any) -> None:
        asked.update(arguments)
        raise Opened

    monkeypatch.setattr(model, "LLM", opened)
    with pytest.raises(Opened):
        model.open_llm(run_of(mode), Options(), max_batch_size=1, max_seq_len=8)
    assert asked["deterministic"] is deterministic
