"""The model families written once more, the plain way: one sequence, no cache, a loop over tokens and experts, float64.

Shares no line with the engine; works on a checkpoint's own tensor names and its raw config.json.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Tensors = dict[str, Tensor]


def plain_logits(
    config: dict[str, Any],
    tensors: Tensors,
    token_ids: list[int],
    places: Sequence[int] | None = None,
    *,
    kept: Callable[[Tensor], Tensor] = lambda x: x,
) -> Tensor:
    """Logits at every position, or only at `places` -> [T, V] float64.

    kept: what a cache makes of the keys and the values, [T, heads, D], before attention meets them.
    """
    weights = {name: tensor.double() for name, tensor in tensors.items()}
    x = weights["model.embed_tokens.weight"][token_ids]
    layers, rows = config["num_hidden_layers"], list(range(len(token_ids)))
    for i in range(layers):
        if i == layers - 1 and places is not None:
            rows = list(places)
        own = {
            k.removeprefix(f"model.layers.{i}."): v for k, v in weights.items() if k.startswith(f"model.layers.{i}.")
        }
        x = x[rows] + attention(config, own, norm(config, x, own["input_layernorm.weight"]), rows, kept)
        h = norm(config, x, own["post_attention_layernorm.weight"])
        x = x + (torch.stack([moe(config, own, token) for token in h]) if is_moe(config, i) else mlp(own, "mlp", h))
    head = weights["model.embed_tokens.weight" if config["tie_word_embeddings"] else "lm_head.weight"]
    return norm(config, x, weights["model.norm.weight"]) @ head.t()


def is_moe(config: dict[str, Any], layer: int) -> bool:
    if config["model_type"] == "qwen2_moe":
        return layer not in config["mlp_only_layers"] and (layer + 1) % config["decoder_sparse_step"] == 0
    if config["model_type"] == "xverse":
        return True
    has_experts = config["n_routed_experts"] is not None
    return has_experts and layer >= config["first_k_dense_replace"] and layer % config["moe_layer_freq"] == 0


def norm(config: dict[str, Any], x: Tensor, weight: Tensor) -> Tensor:
    return x * (x.pow(2).mean(-1, keepdim=True) + config["rms_norm_eps"]) ** -0.5 * weight


def mlp(own: Tensors, stem: str, x: Tensor) -> Tensor:
    gate = x @ own[f"{stem}.gate_proj.weight"].t()
    return (gate * torch.sigmoid(gate) * (x @ own[f"{stem}.up_proj.weight"].t())) @ own[f"{stem}.down_proj.weight"].t()


def moe(config: dict[str, Any], own: Tensors, x: Tensor) -> Tensor:
    if config["model_type"] == "xverse":
        y = routed(own["mlp.router.weight"], own, x, config["moe_top_k"], eps=1e-6)
        return y + mlp(own, "mlp.shared_experts", x) if config["num_shared_experts"] else y
    top_k = config["num_experts_per_tok"]
    if config["model_type"] == "qwen2_moe":
        y = routed(own["mlp.gate.weight"], own, x, top_k, eps=0.0 if config["norm_topk_prob"] else None)
        share = 1 / (1 + torch.exp(-own["mlp.shared_expert_gate.weight"][0] @ x))
        return y + share * mlp(own, "mlp.shared_expert", x)
    renormalise = config["norm_topk_prob"] and top_k > 1  # the published gate leaves a single weight as it is
    y = routed(own["mlp.gate.weight"], own, x, top_k, eps=1e-20 if renormalise else None)
    return y + mlp(own, "mlp.shared_experts", x) if config["n_shared_experts"] else y


def routed(router: Tensor, own: Tensors, x: Tensor, top_k: int, *, eps: float | None) -> Tensor:
    """The chosen experts' outputs times their scores, which are divided by their sum plus `eps` unless that is None."""
    scores = torch.softmax(router @ x, dim=0)
    best = torch.argsort(scores, descending=True)[:top_k].tolist()
    norm_by = 1.0 if eps is None else sum(scores[e] for e in best) + eps
    return sum((scores[e] / norm_by * mlp(own, f"mlp.experts.{e}", x) for e in best), torch.zeros_like(x))


def attention(
    config: dict[str, Any], own: Tensors, x: Tensor, rows: list[int], kept: Callable[[Tensor], Tensor]
) -> Tensor:
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"] or config["num_attention_heads"]
    dim, tokens = config["hidden_size"] // heads, x.shape[0]

    def project(role: str, count: int) -> Tensor:
        y = x @ own[f"self_attn.{role}_proj.weight"].t() + own.get(f"self_attn.{role}_proj.bias", 0.0)
        return y.view(tokens, count, dim)

    q, k, v = (project(role, count) for role, count in (("q", heads), ("k", kv_heads), ("v", kv_heads)))
    if "self_attn.q_norm.weight" in own:  # each head's vector on its own, before it is rotated
        q, k = (norm(config, x, own[f"self_attn.{role}_norm.weight"]) for role, x in (("q", q), ("k", k)))
    q, k, v = rotate(config, q), kept(rotate(config, k)), kept(v)
    out = torch.zeros(len(rows), heads, dim, dtype=torch.float64)
    for place, t in enumerate(rows):
        for head in range(heads):
            kv = head // (heads // kv_heads)
            share = torch.softmax(k[: t + 1, kv] @ q[t, head] / math.sqrt(dim), dim=0)
            out[place, head] = share @ v[: t + 1, kv]
    return out.view(len(rows), -1) @ own["self_attn.o_proj.weight"].t() + own.get("self_attn.o_proj.bias", 0.0)


def rotate(config: dict[str, Any], x: Tensor) -> Tensor:
    """Pairs (d, d + D/2) as complex numbers times exp(i position theta^(-2d/D)); linear scaling divides positions."""
    factor = (config["rope_scaling"] or {"factor": 1.0})["factor"]
    half = x.shape[-1] // 2
    speed = torch.tensor([config["rope_theta"] ** (-d / half) for d in range(half)], dtype=torch.float64)
    angle = torch.arange(x.shape[0], dtype=torch.float64)[:, None, None] / factor * speed
    turned = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat((turned.real, turned.imag), dim=-1)
