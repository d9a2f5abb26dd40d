"""A starting point that saves training time: heads that look at the previous token, and at equal tokens.

Rotary attention finds these two patterns slowly by itself, and reading ("no bridge" ... "a bridge?") waits for both.
For the first, the embeddings share a constant part (their mean); half the heads of layer 0 turn it into a query u and
a key R(1) u, so that the score u^T R(j - i) R(1) u is largest at j = i - 1. For the second, half the heads of the later
layers start with equal query and key weights. Training is free to change all of it.
"""

from __future__ import annotations

import torch

from .model import DemoModel, Layer

STRENGTH = 24.0
"""Squared length of u in each of the two fastest rotations: the last token then gets about 3/4 of the weight."""

MATCH_GAIN = 1.5


def starting_point(model: DemoModel) -> None:
    """Set both patterns."""
    look_back(model)
    match_equal(model)


@torch.no_grad()
def match_equal(model: DemoModel) -> None:
    """Give the first half of the heads of all layers but layer 0 equal query and key weights."""
    half = model.cfg.hidden_size // 2
    for layer in list(model.layers)[1:]:
        assert isinstance(layer, Layer)
        layer.self_attn.q_proj.weight[:half] *= MATCH_GAIN
        layer.self_attn.k_proj.weight[:half] = layer.self_attn.q_proj.weight[:half]


@torch.no_grad()
def look_back(model: DemoModel) -> None:
    """Overwrite query and key of the first half of layer 0's heads."""
    cfg = model.cfg
    size = cfg.hidden_size // cfg.num_attention_heads
    speeds = cfg.rope_theta ** (-torch.arange(0, size, 2, dtype=torch.float32) / size)[:2]
    query, key = torch.zeros(size), torch.zeros(size)
    query[:2] = STRENGTH**0.5
    key[:2] = STRENGTH**0.5 * speeds.cos()
    key[size // 2 : size // 2 + 2] = STRENGTH**0.5 * speeds.sin()
    # After RmsNorm each component of a token has mean sqrt(1/2); the row sums to 1 over these means.
    mean = torch.full((cfg.hidden_size,), 2.0**0.5 / cfg.hidden_size)
    first = model.layers[0]
    assert isinstance(first, Layer)
    attention = first.self_attn
    for head in range(cfg.num_attention_heads // 2):
        rows = slice(head * size, (head + 1) * size)
        attention.q_proj.weight[rows] = 0.2 * attention.q_proj.weight[rows] + torch.outer(query, mean)
        attention.k_proj.weight[rows] = 0.2 * attention.k_proj.weight[rows] + torch.outer(key, mean)
