"""Rotary positions of a model: which values of a head turn, and how fast. Imports no torch before it makes tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class LinearScaling:
    """Positions divided by `factor`: linear interpolation (Chen et al. 2023)."""

    factor: float

    def scaled(self, frequency_D: Tensor, theta: float) -> Tensor:
        return frequency_D / self.factor


@dataclass(frozen=True)
class Llama3:
    """Llama 3.1: frequencies that turn often within the trained positions stay, those that turn seldom are divided by
    `factor`, and those between are mixed."""

    factor: float
    low_freq_factor: float  # turns up to which a frequency is divided
    high_freq_factor: float  # turns from which it stays
    original_positions: int  # of the training before the scaling

    def scaled(self, frequency_D: Tensor, theta: float) -> Tensor:
        turns_D = frequency_D * (self.original_positions / (2 * math.pi))
        kept_D = ((turns_D - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)).clamp(0, 1)
        return frequency_D * (kept_D + (1 - kept_D) / self.factor)


@dataclass(frozen=True)
class Yarn:
    """YaRN (Peng et al. 2023): as Llama 3.1, but mixed by the place of a frequency, and cos and sin are scaled."""

    factor: float
    original_positions: int  # of the training before the scaling
    beta_fast: float = 32.0  # turns within these positions from which a frequency stays
    beta_slow: float = 1.0  # turns up to which it is divided by `factor`
    mscale: float = 1.0
    mscale_all_dim: float = 0.0
    attention_factor: float | None = None  # of cos and sin; None: by mscale and mscale_all_dim

    def scaled(self, frequency_D: Tensor, theta: float) -> Tensor:
        import torch

        count = len(frequency_D)
        low = max(math.floor(self._place(self.beta_fast, 2 * count, theta)), 0)
        high = min(math.ceil(self._place(self.beta_slow, 2 * count, theta)), 2 * count - 1)
        place_D = torch.arange(count, dtype=torch.float32)
        divided_D = ((place_D - low) / (high - low or 0.001)).clamp(0, 1)
        return frequency_D * (1 - divided_D) + frequency_D / self.factor * divided_D

    def _place(self, turns: float, width: int, theta: float) -> float:
        """The place of the frequency that turns so often within the original positions, among width / 2."""
        return width * math.log(self.original_positions / (2 * math.pi * turns)) / (2 * math.log(theta))

    def magnitude(self, mscale: float) -> float:
        """By which longer texts ask for larger scores."""
        return 0.1 * mscale * math.log(self.factor) + 1.0


Pairs = Literal["half", "adjacent"]
Scaling = LinearScaling | Llama3 | Yarn


@dataclass(frozen=True)
class Rope:
    """Rotary positions (Su et al. 2021) of the first `width` values of a head; the others are not turned.

    pairs: of values that turn together: "half" (d, d + width / 2), "adjacent" (2 d, 2 d + 1).
    """

    theta: float
    width: int
    pairs: Pairs = "half"
    scaling: Scaling | None = None

    def inverse_frequencies(self) -> Tensor:
        """Angle of one position for each pair, [width / 2] float32: theta^(-2 d / width), scaled."""
        import torch

        exponent_D = torch.arange(0, self.width, 2, dtype=torch.float32) / self.width
        frequency_D = 1.0 / (self.theta**exponent_D)
        return frequency_D if self.scaling is None else self.scaling.scaled(frequency_D, self.theta)

    @property
    def table_factor(self) -> float:
        """What cos and sin are multiplied by: YaRN's magnitudes, as DeepSeek's published code and transformers do."""
        yarn = self.scaling
        if not isinstance(yarn, Yarn):
            return 1.0
        if yarn.attention_factor is not None:
            return yarn.attention_factor
        return yarn.magnitude(yarn.mscale) / yarn.magnitude(yarn.mscale_all_dim)

    @property
    def score_factor(self) -> float:
        """What the scale of the scores is multiplied by in DeepSeek's latent attention; plain attention has none."""
        return self.scaling.magnitude(self.scaling.mscale_all_dim) ** 2 if isinstance(self.scaling, Yarn) else 1.0
