"""Latent attention and the gating of DeepSeek-V2 and V3 the plain way, in float64: keys and values are expanded, pairs
of adjacent values turn as complex numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Tensors = dict[str, Tensor]


def latent_attention(
    config: dict[str, Any], own: Tensors, x: Tensor, rows: list[int], kept: Callable[[Tensor], Tensor]
) -> Tensor:
    heads, tokens = config["num_attention_heads"], x.shape[0]
    nope, value, rank = config["qk_nope_head_dim"], config["v_head_dim"], config["kv_lora_rank"]

    def project(x: Tensor, name: str) -> Tensor:
        return x @ own[f"self_attn.{name}.weight"].t() + own.get(f"self_attn.{name}.bias", 0.0)

    def unit(x: Tensor, name: str) -> Tensor:
        return x * (x.pow(2).mean(-1, keepdim=True) + 1e-6) ** -0.5 * own[f"self_attn.{name}.weight"]

    if config["q_lora_rank"] is None:
        q = project(x, "q_proj")
    else:
        q = project(unit(project(x, "q_a_proj"), "q_a_layernorm"), "q_b_proj")
    q = q.view(tokens, heads, -1)
    both = project(x, "kv_a_proj_with_mqa")
    latent = kept(unit(both[:, :rank], "kv_a_layernorm")[:, None])[:, 0]
    rotary_key = kept(turned(config, both[:, None, rank:]))[:, 0]
    rotary_query = turned(config, q[..., nope:])
    expanded = project(latent, "kv_b_proj").view(tokens, heads, nope + value)
    out = torch.zeros(len(rows), heads, value, dtype=torch.float64)
    for place, t in enumerate(rows):
        for head in range(heads):
            scores = expanded[: t + 1, head, :nope] @ q[t, head, :nope] + rotary_key[: t + 1] @ rotary_query[t, head]
            out[place, head] = torch.softmax(scores * scale(config), dim=0) @ expanded[: t + 1, head, nope:]
    return project(out.view(len(rows), -1), "o_proj")


def scale(config: dict[str, Any]) -> float:
    plain = (config["qk_nope_head_dim"] + config["qk_rope_head_dim"]) ** -0.5
    yarn = yarn_of(config)
    return plain if yarn is None else plain * magnitude(yarn, yarn.get("mscale_all_dim", 0.0)) ** 2


def yarn_of(config: dict[str, Any]) -> dict[str, Any] | None:
    scaling: dict[str, Any] | None = config["rope_scaling"]
    return scaling if scaling is not None and scaling["type"] == "yarn" else None


def magnitude(yarn: dict[str, Any], mscale: float) -> float:
    return 0.1 * mscale * math.log(yarn["factor"]) + 1 if yarn["factor"] > 1 else 1.0


def turned(config: dict[str, Any], x: Tensor) -> Tensor:
    """Pairs (2d, 2d + 1) of [T, heads, rotary] by the angles of their positions."""
    tokens, _, width = x.shape
    yarn, theta = yarn_of(config), config["rope_theta"]
    speeds, factor = [theta ** (-2 * d / width) for d in range(width // 2)], 1.0
    if yarn is None and config["rope_scaling"] is not None:
        speeds = [speed / config["rope_scaling"]["factor"] for speed in speeds]
    elif yarn is not None:
        speeds = [slowed(yarn, theta, width, d, speed) for d, speed in enumerate(speeds)]
        factor = magnitude(yarn, yarn.get("mscale", 1.0)) / magnitude(yarn, yarn.get("mscale_all_dim", 0.0))
    angle = torch.arange(tokens, dtype=torch.float64)[:, None, None] * torch.tensor(speeds, dtype=torch.float64)
    product = torch.complex(x[..., 0::2], x[..., 1::2]) * torch.polar(torch.full_like(angle, factor), angle)
    return torch.stack((product.real, product.imag), dim=-1).flatten(-2)


def slowed(yarn: dict[str, Any], theta: float, width: int, place: int, speed: float) -> float:
    def corner(turns: float) -> float:
        length = yarn["original_max_position_embeddings"] / (2 * math.pi * turns)
        return width * math.log(length) / (2 * math.log(theta))

    low = max(math.floor(corner(yarn.get("beta_fast", 32))), 0)
    high = min(math.ceil(corner(yarn.get("beta_slow", 1))), width - 1)
    ramp = min(max((place - low) / ((high - low) or 0.001), 0.0), 1.0)
    return speed * (1 - ramp) + speed / yarn["factor"] * ramp


def chosen(config: dict[str, Any], own: Tensors, x: Tensor) -> list[tuple[int, float]]:
    """A token's experts and their weights."""
    logits, top_k = own["mlp.gate.weight"] @ x, config["num_experts_per_tok"]
    is_v3 = config["model_type"] == "deepseek_v3"
    scores = torch.sigmoid(logits) if is_v3 else torch.softmax(logits, dim=0)
    choice = scores + own["mlp.gate.e_score_correction_bias"] if is_v3 else scores
    allowed = list(range(len(scores)))
    if is_v3 or config["topk_method"] == "group_limited_greedy":
        groups = list(choice.view(config["n_group"], -1))
        worth = [sum(sorted(group.tolist())[-2:]) if is_v3 else group.max().item() for group in groups]
        best = sorted(range(len(groups)), key=lambda g: -worth[g])[: config["topk_group"]]
        size = len(groups[0])
        allowed = [expert for expert in allowed if expert // size in best]
    experts = sorted(allowed, key=lambda expert: -choice[expert].item())[:top_k]
    weights = scores[experts]
    divided = config["norm_topk_prob"] and top_k > 1
    if divided:
        weights = weights / (weights.sum() + 1e-20)
    if is_v3 or not divided:
        weights = weights * config["routed_scaling_factor"]
    return list(zip(experts, weights.tolist(), strict=True))
