"""Plans of these tests are of operations in parts: no library serves one whole."""

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
