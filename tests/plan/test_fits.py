"""What fits on cards."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from atb_models import ops
from atb_models.limits import Limits
from atb_models.models.config import ModelConfig
from atb_models.models.config_reader import load_model_config
from atb_models.plan.capacity import Deployment
from atb_models.plan.fits import CARD_GIB, CARDS, fits, usable

GIB = 1 << 30


def deployment(model: ModelConfig) -> Deployment:
    ops.bind("cpu")
    return Deployment(model, torch.float16, 2, Limits(1, 512, 1024, 128))


@pytest.fixture
def real(shared: Path) -> Deployment:
    return deployment(load_model_config(shared / "headers" / "deepseek-moe-16b-base", log=False))


@pytest.mark.usefixtures("clean_environ")
def test_the_real_model_on_common_cards(real: Deployment) -> None:
    rows = fits(real, real.memory(), 16_375_728_128)
    assert [row.cards for row in rows] == list(CARDS)
    assert [[row.missing(size) > 0 for size in CARD_GIB] for row in rows] == [
        [True, True, False],  # 30.5 GiB of weights, 3 GiB of each card kept free
        [False, False, False],
        [False, False, False],
        [False, False, False],
    ]
    for row in rows:
        assert row.memory is not None and row.rule_bytes == pytest.approx(2 * 1.2 * 16_375_728_128 / row.cards)
        for size in CARD_GIB:
            need = row.memory.weights + row.memory.activations
            tokens, block = row.kv_tokens(size), row.memory.kv_block
            if row.missing(size):
                assert tokens == 0 and row.missing(size) == need + block - (size - 3) * GIB
            else:
                left = (size - 3) * GIB - need - tokens * row.memory.kv_per_token
                assert tokens > 0 and tokens % 128 == 0 and 0 <= left < block


def test_the_memory_that_is_known_is_not_worked_out_again(real: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    known = replace(real.memory(), weights=1)
    assert fits(real, known, 1)[CARDS.index(real.size)].memory == known


def test_as_many_cards_as_ranks_have_a_row(real: Deployment) -> None:
    three = replace(real, size=3)
    rows = fits(three, three.memory(), 1)
    assert [row.cards for row in rows] == [1, 2, 3, 4, 8] and rows[2].memory == three.memory()


@pytest.mark.usefixtures("clean_environ")
def test_the_environment_says_what_of_a_card_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    assert usable(24) == 21 * GIB
    monkeypatch.setenv("RESERVED_MEMORY_GB", "0")
    monkeypatch.setenv("NPU_MEMORY_FRACTION", "0.5")
    assert usable(24) == 12 * GIB
    monkeypatch.setenv("RESERVED_MEMORY_GB", "30")
    assert usable(24) == -18 * GIB


@pytest.mark.usefixtures("clean_environ")
def test_a_reserve_beyond_the_card_leaves_smaller_cards_more_to_lack(
    demo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESERVED_MEMORY_GB", "40")
    subject = deployment(load_model_config(demo, log=False))
    for row in fits(subject, subject.memory(), 1):
        assert row.missing(24) - row.missing(32) == 8 * GIB and row.missing(64) == 0
        assert row.kv_tokens(24) == row.kv_tokens(32) == 0 < row.kv_tokens(64)


def test_more_ranks_than_heads_say_so(demo: Path) -> None:
    config = load_model_config(demo, log=False)
    few = replace(config, num_attention_heads=2, num_key_value_heads=2)
    subject = deployment(few)
    rows = fits(subject, subject.memory(), 1)
    assert [row.memory is None for row in rows] == [False, False, True, True]
    assert rows[3].refusal.startswith("8 ranks cannot share 2 attention heads")
