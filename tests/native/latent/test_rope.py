"""RopeAndLatentCache of the library: torch's bits, in floats and in int8, and nothing else is written."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from atb_models.ops.kv_cache import LayerCache, make_cache
from atb_models.ops.latent.cache import rope_and_latent_cache as operation
from atb_models.ops.native.latent.rope import rope_and_latent_cache
from atb_models.ops.native.library import Library
from atb_models.ops.plane import latent_and_rope_key
from tests.crosses import crossed
from tests.native.cases import DTYPES, LEVELS
from tests.records import slots_step

# Heads, width of a head, rotated values of it, width of a latent
SIZES = [(16, 192, 64, 512), (5, 24, 8, 32), (1, 9, 2, 33), (3, 14, 14, 700)]


def empty_cache(latent: int, rotary: int, dtype: torch.dtype) -> LayerCache:
    """Five blocks of 16, full of what nobody wrote."""
    planes = latent_and_rope_key(latent, rotary, dtype)
    return make_cache(planes, 5, 16, lambda shape, stored: torch.full(shape, 99, dtype=stored))


def rows(sizes: tuple[int, int, int, int], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """29 tokens: queries, latents and keys of one projection, and tables."""
    heads, width, rotary, latent = sizes
    fused = (torch.randn(29, heads * width + latent + rotary) * 10 ** torch.randn(29, 1)).to(dtype)
    q, latents, keys = fused.split((heads * width, latent, rotary), dim=1)
    latents[3], keys[4] = 0, 0
    latents[5, 2], keys[6, 0] = float("nan"), float("inf")
    angle = torch.rand(29, rotary // 2) * 6
    return q.unflatten(1, (heads, width)), latents, keys, angle.cos(), angle.sin()


@pytest.mark.parametrize(
    ("library", "sizes", "dtype", "int8"), crossed(LEVELS, SIZES, DTYPES, (False, True)), indirect=["library"]
)
def test_the_bits_of_torch(
    library: Library, sizes: tuple[int, int, int, int], dtype: torch.dtype, int8: bool
) -> None:
    given, slots = rows(sizes, dtype), torch.randperm(5 * 16)[:29].int()
    ours, theirs = (empty_cache(sizes[3], sizes[2], torch.int8 if int8 else dtype) for _ in range(2))
    q = rope_and_latent_cache(library, *given, ours, slots)
    assert torch.equal(q, operation.reference(*given, theirs, slots_step(slots)))
    for name, plane in theirs.items():
        good = torch.ones(5 * 16, dtype=torch.bool)
        good[slots[5:7].long()] = not int8  # torch's integers of what is no number are its own
        assert torch.equal(ours[name].flatten(0, 1)[good].nan_to_num(), plane.flatten(0, 1)[good].nan_to_num())
        if name.endswith("_scale"):
            assert not plane.flatten(0, 1)[slots[5 if "latent" in name else 6].long()].isfinite().all()


def test_refusals(library: Library) -> None:
    sizes = SIZES[1]
    given, cache = rows(sizes, torch.float16), empty_cache(32, 8, torch.float16)
    slots = torch.arange(29).int()

    def refused(match: str, place: int, wrong: object) -> None:
        with pytest.raises(ValueError, match=match):
            arguments = [*given, cache, slots]
            arguments[place] = wrong  # type: ignore[call-overload]
            rope_and_latent_cache(library, *arguments)  # type: ignore[arg-type]

    refused("do not go together", 1, given[1][:, :31])
    refused("do not go together", 2, given[2][:, :6])
    refused("do not go together", 3, given[3][:, :3])
    refused("torch.float32", 1, given[1].float())
    refused("tables of torch.float16", 3, given[3].half())
    refused("slots of torch.int64", 6, slots.long())
    refused("planes of", 5, LayerCache(latent=cache["latent"][:4], rope_key=cache["rope_key"]))
    refused("do not lie together", 1, given[1].t().contiguous().t())
    for slot in (-1, 80):
        wrong = slots.clone()
        wrong[7] = slot
        refused("a slot that the cache does not have", 6, wrong)
    assert (cache["latent"] == 99).all() and (cache["rope_key"] == 99).all()
