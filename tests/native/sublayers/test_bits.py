"""A sublayer as one call gives the bits of its parts."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from atb_models.layers.storage import METHODS, Quantization
from atb_models.ops.native.library import Library
from tests.crosses import crossed
from tests.native.cases import DTYPES, LEVELS
from tests.native.sublayers.layers import MODELS, STEPS, Layer, build_layers, check_layer, random_step
from tests.records import build_of

STORAGES = [*([method, None] for method in (None, *METHODS)), [None, torch.int8]]  # of weights, and of the cache


@pytest.mark.parametrize(
    ("library", "fields", "dtype", "method", "kv_dtype"),
    crossed(LEVELS, MODELS, DTYPES, STORAGES),
    indirect=["library"],
)
@torch.inference_mode()
def test_the_bits_of_the_parts(
    bound: Library,
    tmp_path: Path,
    fields: dict[str, Any],
    dtype: torch.dtype,
    method: str | None,
    kv_dtype: torch.dtype | None,
) -> None:
    """On one rank, and on the last of several, whose widths are padded and which adds no bias.

    Groups of 4 bits are cut at multiples of 8, which leave nothing of these widths for a fourth rank.
    """
    torch.set_num_threads(2)
    stored = None if method is None else Quantization(method, every=METHODS[method])
    for rank, size in ((0, 1), (1, 2) if method == "w4a16" else (3, 4)):
        build = replace(build_of(dtype, rank, size, quantization=stored), kv_dtype=kv_dtype)
        model = build_layers(tmp_path, fields, build)
        for index, (queries, lengths) in itertools.product(range(2), STEPS):
            check_layer(Layer(model, index), random_step(queries, lengths), first=index == 0)
