"""Models of these tests are built with plain weights, whatever an engine of an earlier test has bound."""

from __future__ import annotations

import pytest

from atb_models import ops


@pytest.fixture(autouse=True)
def plain_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATB_CPU_ISA", "reference")
    ops.bind("reference")
