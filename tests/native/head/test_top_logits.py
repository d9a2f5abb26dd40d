"""The greatest logits of each row: the library against the reference, and both against torch's own order."""

from __future__ import annotations

import math
from collections.abc import Sequence as Rows

import numpy as np
import pytest
import torch
from torch import Tensor

from atb_models import SamplingParams, ops
from atb_models.engine.sampling.draws import CANDIDATES
from atb_models.engine.sampling.sampler import sample, sample_top, top_logits_wanted
from atb_models.engine.sequence import Sequence
from atb_models.ops.native.library import Library
from atb_models.ops.native.top_logits import top_logits
from atb_models.ops.top_logits import merged
from tests.crosses import crossed
from tests.native.cases import DTYPES, LEVELS

NAN, INF = math.nan, math.inf
FIELDS: list[dict[str, object]] = [
    {},
    *(
        {"temperature": temperature, "top_k": top_k, "seed": seed, **more}
        for seed, (temperature, top_k) in enumerate([(1.0, 1), (0.7, 5), (2.0, 64), (1e-40, 50), (1e4, 64)])
        for more in ({}, {"top_p": 0.8}, {"min_p": 0.1}, {"top_p": 0.9, "min_p": 0.05})
    ),
]


def some_logits(rows: int, width: int, dtype: torch.dtype) -> Tensor:
    """Values with many ties, and one of each kind of what is no ordinary number."""
    logits = (torch.randn(rows, width) * 3).to(dtype)
    logits[:, ::3] = logits[:, ::3].round()
    for column, value in enumerate((NAN, INF, -INF, -0.0, 0.0, -NAN, torch.finfo(dtype).tiny / 4)):
        logits[column % rows, (7 * column + 3) % width] = value
    return logits


@pytest.mark.parametrize(
    ("library", "dtype", "width"), crossed(LEVELS, DTYPES, [1, 5, 16, 63, 64, 65, 130, 1003]), indirect=["library"]
)
def test_the_library_gives_the_keys_of_the_reference(library: Library, dtype: torch.dtype, width: int) -> None:
    wide = some_logits(9, 3 * width, dtype)
    for logits in (wide, wide[:, width : 2 * width]):
        for count in (1, 7, CANDIDATES):
            for first in (0, 102_400 - width):
                expected = ops.top_logits.reference(logits, count, first)
                assert torch.equal(top_logits(library, logits, count, first), expected)


def test_threads_change_nothing(library: Library) -> None:
    logits = torch.randn(40, 5000).bfloat16()
    found = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        found.append(top_logits(library, logits, 8, 0))
    assert torch.equal(*found)


@pytest.mark.parametrize("dtype", DTYPES)
def test_keys_hold_the_order_of_torch(library: Library, dtype: torch.dtype) -> None:
    logits = (torch.randn(30, 400) * 4).to(dtype)
    order = logits.float().sort(stable=True, dim=-1, descending=True)
    for keys in (top_logits(library, logits, 20, 0), ops.top_logits.reference(logits, 20, 0)):
        top = merged(keys, 20)
        assert np.array_equal(top.values_LK, order.values[:, :20].numpy()) and top.bad_rows == []
        assert np.array_equal(top.ids_LK, order.indices[:, :20].numpy()) and not top.not_finite_L.any()


def test_what_is_no_number_is_counted(library: Library) -> None:
    logits = torch.tensor([[1.0, -INF, 2.0], [NAN, -INF, 2.0], [INF, NAN, NAN], [-INF, -INF, -INF], [-0.0, 0.0, -1.0]])
    top = merged(top_logits(library, logits, 2, 0), 2)
    assert top.not_finite_L.tolist() == [1, 2, 3, 3, 0] and top.bad_rows == [1, 2, 3]
    assert top.values_LK.tolist() == [[2.0, 1.0], [2.0, -INF], [-INF, -INF], [-INF, -INF], [0.0, 0.0]]
    assert top.ids_LK[[0, 1, 4], [0, 0, 0]].tolist() == [2, 2, 0] and top.ids_LK[4].tolist() == [0, 1]


@pytest.mark.parametrize("ranks", [1, 2])
def test_no_rows(library: Library, ranks: int) -> None:
    keys = gathered(library, torch.randn(0, 40), 3, ranks)
    assert keys.shape == (0, 4 * ranks) and merged(keys, 3).values_LK.shape == (0, 3)
    assert sample_top(keys, 3, [], 40) == []


def gathered(library: Library, logits: Tensor, count: int, ranks: int) -> Tensor:
    """As the ranks' parts come together; the last ones may have few columns, or none."""
    width = -(-logits.shape[1] // ranks)
    starts = [min(rank * width, logits.shape[1]) for rank in range(ranks)]
    return torch.cat([top_logits(library, logits[:, first : first + width], count, first) for first in starts], -1)


@pytest.mark.parametrize(
    ("library", "dtype", "vocab", "ranks"), crossed(LEVELS, DTYPES, [5, 100, 1001], [1, 2, 3, 8]), indirect=["library"]
)
def test_the_same_tokens_as_from_all_logits(library: Library, dtype: torch.dtype, vocab: int, ranks: int) -> None:
    """With ties within a rank and between ranks, and rows that hold what is no number, of which the same is told."""
    params = [SamplingParams(**fields).resolve({}) for fields in FIELDS]  # type: ignore[arg-type]
    logits = torch.cat([some_logits(len(params), vocab, dtype), torch.zeros(len(params), vocab, dtype=dtype)])
    logits[3] = NAN
    logits[len(params) + 1, ::2] = 7.0

    def sequences() -> list[Sequence]:
        return [Sequence([1], one) for one in (*params, *params)]

    expected_told: list[tuple[int, int]] = []
    told: list[tuple[int, int]] = []
    expected, _ = sample(logits.float(), sequences(), lambda *counts: expected_told.append(counts))
    assert top_logits_wanted(sequences()) == CANDIDATES
    keys = gathered(library, logits, CANDIDATES, ranks)
    assert sample_top(keys, CANDIDATES, sequences(), vocab, lambda *counts: told.append(counts)) == expected
    assert told == expected_told and len(told) == 1
    greedy = [Sequence([1], SamplingParams().resolve({})) for _ in logits]
    assert top_logits_wanted(greedy) == 1
    assert sample_top(gathered(library, logits, 1, ranks), 1, greedy, vocab) == sample(logits.float(), greedy)[0]


def test_a_row_is_drawn_alike_in_any_company() -> None:
    logits = torch.randn(len(FIELDS), 300) * 2

    def drawn(rows: Rows[int]) -> list[int]:
        seqs = [Sequence([1], SamplingParams(**FIELDS[row]).resolve({})) for row in rows]  # type: ignore[arg-type]
        return sample(logits[list(rows)], seqs)[0]

    every = range(len(FIELDS))
    assert [drawn([row])[0] for row in every] == drawn(every) == drawn(every[::-1])[::-1]


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 1.0},
        {"temperature": 1.0, "top_p": 0.9},
        {"temperature": 1.0, "top_k": CANDIDATES + 1},
        {"temperature": 1.0, "top_k": -1},
        {"logprobs": 0},
        {"logprob_token_ids": [3]},
        {"temperature": 1.0, "top_k": 5, "logprobs": 1},
        {"repetition_penalty": 1.1},
        {"presence_penalty": 0.1, "temperature": 1.0, "top_k": 5},
        {"logit_bias": {3: 1}},
    ],
    ids=str,
)
def test_who_needs_all_logits(fields: dict[str, object]) -> None:
    few = [Sequence([1], SamplingParams(temperature=1.0, top_k=CANDIDATES).resolve({})) for _ in range(2)]
    assert top_logits_wanted(few) == CANDIDATES
    one = Sequence([1], SamplingParams(**fields).resolve({}))  # type: ignore[arg-type]
    assert top_logits_wanted([*few, one]) == 0


def test_wrong_arguments_are_refused(library: Library) -> None:
    logits = torch.randn(4, 8)
    for given, count, first in ((logits, 0, 0), (logits, 1, -1), (logits, 1, 2**31 - 8), (logits.double(), 1, 0)):
        with pytest.raises(ValueError, match="TopLogits: "):
            top_logits(library, given, count, first)
    with pytest.raises(ValueError, match="do not lie together"):
        top_logits(library, logits.t(), 1, 0)
    with pytest.raises(ValueError, match="a tensor on meta"):
        top_logits(library, logits.to("meta"), 1, 0)
