"""Latent attention by torch: exact in both forms, and the form with fewer FLOPs is taken."""

from __future__ import annotations

import pytest
import torch

from atb_models.ops.latent import attention
from atb_models.ops.latent.attention import latent_attention
from atb_models.ops.latent.cost import LatentShape
from tests.native.cases import DTYPES, assert_close
from tests.native.latent.cases import SIZES, LatentCase, Sizes
from tests.records import attention_step

LITE = LatentShape(heads=16, nope=128, rotary=64, value=128, latent=512)


def by_torch(case: LatentCase) -> torch.Tensor:
    step = attention_step(case.queries, case.lengths, case.table)
    return latent_attention.reference(case.q, case.maps, case.cache, step, case.sizes.scale)


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("absorbs", [None, True, False])
def test_both_forms_are_exact(
    monkeypatch: pytest.MonkeyPatch, absorbs: bool | None, dtype: torch.dtype, int8: bool
) -> None:
    """Several tiles of queries, heads that are expanded one after the other, several lengths of single queries."""
    monkeypatch.setattr(attention, "QUERY_TILE", 16)
    monkeypatch.setattr(attention, "GATHER_ELEMENTS", 2 * 300 * 32)
    if absorbs is not None:
        monkeypatch.setattr(LatentShape, "absorbs", lambda self, queries, length: absorbs)
    torch.manual_seed(0)
    case = LatentCase(SIZES[1], dtype, [1, 33, 1, 2, 40, 1], [18, 290, 1, 258, 40, 301], int8=int8)
    assert_close(by_torch(case), case.exact())


def test_stale_slots_beyond_a_sequence_do_not_matter() -> None:
    torch.manual_seed(0)
    case = LatentCase(SIZES[1], torch.float32, [1, 4, 1], [18, 30, 260])
    case.table = torch.randperm(48)[: 3 * 16].view(3, 16).int()
    case.table = torch.cat((case.table, case.table[:, :1]), dim=1)  # the longest takes its first block twice
    expected = by_torch(case)
    for plane in case.cache.values():
        plane[case.table[0, 1], 2:], plane[case.table[1, 1], 14:] = torch.nan, torch.inf
    assert torch.equal(by_torch(case), expected)


@pytest.mark.parametrize(
    ("queries", "length", "absorbed"),
    [
        (1, 1, True),  # a single one always
        (1, 4000, True),
        (2048, 2048, False),  # a whole prompt
        (16, 2048, True),  # a short chunk behind a long text
        (170, 100_000, True),
        (172, 100_000, False),  # latent * (nope + value) / (2 * latent - nope - value) = 170.7 queries
    ],
)
def test_the_form_with_fewer_flops(queries: int, length: int, absorbed: bool) -> None:
    """Products of each form, counted one by one: maps of vectors, and pairs of a query and a key it sees."""
    pairs = sum(length - queries + i + 1 for i in range(queries))
    maps = 16 * 512 * (128 + 128) * 2
    forms = {
        True: queries * maps + pairs * 16 * (512 + 64 + 512) * 2,
        False: length * maps + pairs * 16 * (128 + 64 + 128) * 2,
    }
    assert LITE.absorbs(queries, length) is absorbed
    assert LITE.flops(queries, length) == forms[absorbed]
    assert queries == 1 or forms[absorbed] == min(forms.values())


@pytest.mark.parametrize(
    ("sizes", "rows"), [(Sizes(3, 4, 2, 5, 6, 8), 26), (Sizes(3, 4, 2, 5, 6, 8), 12), (Sizes(3, 4, 7, 5, 6, 8), 27)]
)
def test_maps_that_do_not_fit_the_heads(sizes: Sizes, rows: int) -> None:
    """Rows that do not divide by the heads, or leave none for values; queries narrower than the rotary keys."""
    case = LatentCase(sizes, torch.float32, [2], [5])
    case.maps = torch.zeros(rows, 6)
    case.q = case.q[..., :6]
    with pytest.raises(ValueError, match="do not go together"):
        by_torch(case)
