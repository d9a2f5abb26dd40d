"""Graphs of these tests show an operation in parts: no library serves it whole."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from atb_models import ops


@pytest.fixture(scope="module", autouse=True)
def without_library() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ATB_CPU_ISA", "reference")
        ops.bind("reference")
        yield
