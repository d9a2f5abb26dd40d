"""A level that is bound, and a layer of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from atb_models import ops
from atb_models.ops.native.library import Library
from tests.native.sublayers.layers import MODELS, Layer, build_layers
from tests.records import build_of


@pytest.fixture
def bound(library: Library, monkeypatch: pytest.MonkeyPatch) -> Iterator[Library]:
    monkeypatch.setenv("ATB_CPU_ISA", library.level.name)
    ops.bind("cpu")
    yield library
    ops.bind("reference")


@pytest.fixture
def moe(bound: Library, tmp_path: Path) -> Layer:
    """A mixture-of-experts layer with everything that one can have."""
    with torch.inference_mode():
        return Layer(build_layers(tmp_path, MODELS[0], build_of(torch.float16)), 1)
