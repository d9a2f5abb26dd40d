"""Rotary positions: how config.json tells of them, and the formulas of their scalings, written once more in floats."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from atb_models import ops
from atb_models.errors import ConfigError
from atb_models.models.config_reader import load_model_config
from atb_models.models.rope import LinearScaling, Llama3, Rope, Yarn

LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
YARN = {"factor": 40, "original_max_position_embeddings": 4096}


def rope_of(folder: Path, **fields: Any) -> Rope:
    (folder / "config.json").write_text(json.dumps({**tiny.FAMILIES["deepseek"], **fields}))
    return load_model_config(folder).rope


def test_spellings_of_the_scalings(tmp_path: Path) -> None:
    expected = Rope(10000.0, 8, scaling=Llama3(8.0, 1.0, 4.0, 8192))
    assert rope_of(tmp_path, rope_scaling={"rope_type": "llama3", **LLAMA3}) == expected
    assert rope_of(tmp_path, rope_parameters={"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3}).theta == 5e5
    assert rope_of(tmp_path, rope_scaling={"type": "yarn", **YARN}).scaling == Yarn(40.0, 4096)
    more = {"beta_fast": 16, "beta_slow": 2, "mscale": 0.707, "mscale_all_dim": 0.5, "attention_factor": 1.2}
    yarn = rope_of(tmp_path, rope_scaling={"type": "yarn", **YARN, **more, "truncate": True}).scaling
    assert yarn == Yarn(40.0, 4096, 16.0, 2.0, 0.707, 0.5, 1.2)


@pytest.mark.parametrize(
    ("scaling", "problem"),
    [
        ({"type": "llama3", "factor": 8.0}, "low_freq_factor is missing"),
        ({"type": "llama3", **LLAMA3, "high_freq_factor": 1.0}, "high_freq_factor is 1.0, but must be above low_freq"),
        ({"type": "llama3", **LLAMA3, "beta_fast": 32}, "rope_scaling is .* and beta_fast in it is not supported"),
        ({"type": "yarn", "factor": 4.0}, "original_max_position_embeddings is missing"),
        ({"type": "yarn", **YARN, "beta_slow": 32}, "beta_slow is 32, but must be below beta_fast, which is 32"),
        ({"type": "yarn", **YARN, "truncate": False}, "truncate is False, but only True is supported"),
        ({"type": "yarn", **YARN, "mscale": -1}, "mscale is -1, but must be a number from 0 to 100"),
        ({"type": "yarn", **YARN, "attention_factor": "2"}, "attention_factor is '2', but must be a number"),
        ({"type": "yarn", **YARN, "rope_theta": 1.0}, "rope_theta is .* but must be above 1 for yarn"),
        ({"type": "longrope", "factor": 4.0}, "only null and the types 'linear', 'llama3', 'yarn' are supported"),
    ],
)
def test_scalings_that_cannot_be_honoured(tmp_path: Path, scaling: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        rope_of(tmp_path, rope_scaling=scaling)


def plain(width: int, theta: float) -> list[float]:
    return [theta ** (-2 * d / width) for d in range(width // 2)]


def llama3(frequency: float) -> float:
    turns = 8192 * frequency / (2 * math.pi)
    if turns < 1:
        return frequency / 8
    if turns > 4:
        return frequency
    kept = (turns - 1) / 3
    return frequency * (kept + (1 - kept) / 8)


def yarn(width: int, theta: float, factor: float, original: int) -> list[float]:
    def place(turns: float) -> float:
        return width * math.log(original / (2 * math.pi * turns)) / (2 * math.log(theta))

    low, high = max(math.floor(place(32)), 0), min(math.ceil(place(1)), width - 1)
    scaled = []
    for d, frequency in enumerate(plain(width, theta)):
        divided = min(max((d - low) / (high - low), 0.0), 1.0)
        scaled.append(frequency * (1 - divided) + frequency / factor * divided)
    return scaled


@pytest.mark.parametrize(
    ("rope", "expected"),
    [
        (Rope(1e6, 64), plain(64, 1e6)),
        (Rope(1e4, 64, scaling=LinearScaling(4.0)), [f / 4 for f in plain(64, 1e4)]),
        (Rope(5e5, 128, scaling=Llama3(8.0, 1.0, 4.0, 8192)), [llama3(f) for f in plain(128, 5e5)]),
        (Rope(1e4, 64, scaling=Yarn(40.0, 4096)), yarn(64, 1e4, 40, 4096)),
        (Rope(1e6, 128, scaling=Yarn(4.0, 32768)), yarn(128, 1e6, 4, 32768)),
    ],
)
def test_frequencies(rope: Rope, expected: list[float]) -> None:
    found = rope.inverse_frequencies()
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.tensor(expected), rtol=2e-6, atol=0)
    if isinstance(rope.scaling, (Llama3, Yarn)):  # all three kinds of frequencies are there
        kept = found / torch.tensor(plain(rope.width, rope.theta))
        assert kept[0] == 1 and kept[-1] == pytest.approx(1 / rope.scaling.factor)
        assert ((kept > 1.01 / rope.scaling.factor) & (kept < 0.99)).any()


def test_factors_of_yarn() -> None:
    half = 0.1 * 0.5 * math.log(40) + 1
    whole = 0.1 * math.log(40) + 1
    assert Rope(1e4, 64, scaling=LinearScaling(4.0)).table_factor == Rope(1e4, 64).score_factor == 1.0
    default = Rope(1e4, 64, scaling=Yarn(40.0, 4096))
    assert default.table_factor == pytest.approx(whole) and default.score_factor == 1.0
    scaled = Rope(1e4, 64, scaling=Yarn(40.0, 4096, mscale=1.0, mscale_all_dim=0.5))
    assert scaled.table_factor == pytest.approx(whole / half) and scaled.score_factor == pytest.approx(half**2)
    assert Rope(1e4, 64, scaling=Yarn(40.0, 4096, attention_factor=1.5)).table_factor == 1.5


def test_factor_and_width_reach_the_rotation() -> None:
    """Tables times a factor, of fewer values than a head has: the others stay."""
    positions, frequency = torch.tensor([0, 3, 7], dtype=torch.int32), Rope(1e4, 4).inverse_frequencies()
    cos, sin = ops.rope_tables(positions, frequency, 1.5)
    q = torch.randn(3, 2, 10)
    turned, _ = ops.rope(q, q, cos, sin)
    angle = positions.double()[:, None, None] * frequency.double()
    exact = torch.complex(q.double()[..., :2], q.double()[..., 2:4]) * torch.polar(torch.full_like(angle, 1.5), angle)
    torch.testing.assert_close(turned[..., :4].double(), torch.cat((exact.real, exact.imag), dim=-1), rtol=0, atol=1e-5)
    assert torch.equal(turned[..., 4:], q[..., 4:])
