"""Percentiles, and how sure a share of right answers and the difference of two are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

Z95 = 1.959963984540054  # of the normal distribution, two-sided 95 %


class Interval(NamedTuple):
    """A 95 % confidence interval."""

    low: float
    high: float


def percentile(values: Sequence[float], percent: float) -> float:
    """Of at least one value, interpolated between neighbours as numpy does by default."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def wilson(correct: int, n: int) -> Interval:
    """Of a share of `n` questions, one at least (Wilson 1927)."""
    share, z2 = correct / n, Z95**2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n**2))
    return Interval(max(0.0, middle - half), min(1.0, middle + half))


def paired_difference(only_a: int, only_b: int, n: int) -> Interval:
    """Of share b less share a over the same `n` questions: only_a and only_b were right in one run alone.

    The interval of Bonett and Price (2012): Wald's with one more question of each kind.
    """
    a, b = (only_a + 1) / (n + 2), (only_b + 1) / (n + 2)
    half = Z95 * math.sqrt((a + b - (b - a) ** 2) / (n + 2))
    return Interval(max(-1.0, b - a - half), min(1.0, b - a + half))


def unpaired_difference(correct_a: int, n_a: int, correct_b: int, n_b: int) -> Interval:
    """Of share b less share a over different questions (Newcombe 1998, method 10, from the two Wilson intervals)."""
    a, b = correct_a / n_a, correct_b / n_b
    around_a, around_b = wilson(correct_a, n_a), wilson(correct_b, n_b)
    low = math.hypot(b - around_b.low, around_a.high - a)
    high = math.hypot(around_b.high - b, a - around_a.low)
    return Interval(b - a - low, b - a + high)


def mcnemar(only_a: int, only_b: int) -> float:
    """The exact probability of flips at least so uneven if both runs were equally good (McNemar 1947, two-sided)."""
    flips, fewer = only_a + only_b, min(only_a, only_b)
    if not flips:
        return 1.0
    tail = sum(math.exp(_log_choose(flips, k) - flips * math.log(2)) for k in range(fewer + 1))
    return min(1.0, 2 * tail)


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
