"""The model families written once more, the plain way: one sequence, no cache, a loop over tokens and experts, float64.

Shares no line with the engine; works on a checkpoint's own tensor names and its raw config.json.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tests.parity.plain_latent import chosen, latent_attention

Tensors = dict[str, Tensor]
MIXTRAL = {
    "block_sparse_moe.": "mlp.",
    ".w1.": ".gate_proj.",
    ".w3.": ".up_proj.",
    ".w2.": ".down_proj.",
}


def plain_logits(
    config: dict[str, Any],
    tensors: Tensors,
    token_ids: list[int],
    places: Sequence[int] | None = None,
    *,
    kept: Callable[[Tensor], Tensor] = lambda x: x,
    floats_from: Callable[[int], int] = lambda t: t + 1,
) -> Tensor:
    """Logits at every position, or only at `places` -> [T, V] float64.

    kept: what a cache makes of the keys and the values, [T, heads, D], before attention meets them. floats_from: the
    first position whose keys and values the query of a position meets as they are.
    """
    weights = {usual(config, name): tensor.double() for name, tensor in tensors.items()}
    x = weights["model.embed_tokens.weight"][token_ids]
    layers, rows = config["num_hidden_layers"], list(range(len(token_ids)))
    for i in range(layers):
        if i == layers - 1 and places is not None:
            rows = list(places)
        own = {
            k.removeprefix(f"model.layers.{i}."): v for k, v in weights.items() if k.startswith(f"model.layers.{i}.")
        }
        x = x[rows] + attention(
            config, own, norm(config, x, own["input_layernorm.weight"]), rows, (kept, floats_from)
        )
        h = norm(config, x, own["post_attention_layernorm.weight"])
        x = x + (torch.stack([moe(config, own, token) for token in h]) if is_moe(config, i) else mlp(own, "mlp", h))
    head = weights["model.embed_tokens.weight" if config["tie_word_embeddings"] else "lm_head.weight"]
    return norm(config, x, weights["model.norm.weight"]) @ head.t()


def usual(config: dict[str, Any], name: str) -> str:
    """A tensor's name as most families have it."""
    for theirs, others in MIXTRAL.items() if config["model_type"] == "mixtral" else ():
        name = name.replace(theirs, others)
    return name


def is_moe(config: dict[str, Any], layer: int) -> bool:
    if config["model_type"] in ("qwen2_moe", "qwen3_moe"):
        return layer not in config["mlp_only_layers"] and (layer + 1) % config["decoder_sparse_step"] == 0
    if config["model_type"] in ("xverse", "mixtral", "olmoe"):
        return True
    if config["model_type"] in ("llama", "mistral", "qwen2", "qwen3"):
        return False
    has_experts = config["n_routed_experts"] is not None
    return has_experts and layer >= config["first_k_dense_replace"] and layer % config["moe_layer_freq"] == 0


def norm(config: dict[str, Any], x: Tensor, weight: Tensor) -> Tensor:
    return x * (x.pow(2).mean(-1, keepdim=True) + config["rms_norm_eps"]) ** -0.5 * weight


def mlp(own: Tensors, stem: str, x: Tensor) -> Tensor:
    def project(role: str, x: Tensor) -> Tensor:
        return x @ own[f"{stem}.{role}_proj.weight"].t() + own.get(f"{stem}.{role}_proj.bias", 0.0)

    gate = project("gate", x)
    return project("down", gate * torch.sigmoid(gate) * project("up", x))


def moe(config: dict[str, Any], own: Tensors, x: Tensor) -> Tensor:
    if config["model_type"] == "xverse":
        y = routed(own["mlp.router.weight"], own, x, config["moe_top_k"], eps=1e-6)
        return y + mlp(own, "mlp.shared_experts", x) if config["num_shared_experts"] else y
    top_k = config["num_experts_per_tok"]
    if config["model_type"] in ("qwen3_moe", "mixtral", "olmoe"):
        divided = config["model_type"] == "mixtral" or config["norm_topk_prob"]
        score = torch.sigmoid if config.get("scoring_func") == "sigmoid" else softmax
        return routed(own["mlp.gate.weight"], own, x, top_k, eps=0.0 if divided else None, score=score)
    if config["model_type"] in ("deepseek_v2", "deepseek_v3"):
        y = sum((share * mlp(own, f"mlp.experts.{e}", x) for e, share in chosen(config, own, x)), torch.zeros_like(x))
        return y + mlp(own, "mlp.shared_experts", x) if config["n_shared_experts"] else y
    if config["model_type"] == "qwen2_moe":
        y = routed(own["mlp.gate.weight"], own, x, top_k, eps=0.0 if config["norm_topk_prob"] else None)
        share = 1 / (1 + torch.exp(-own["mlp.shared_expert_gate.weight"][0] @ x))
        return y + share * mlp(own, "mlp.shared_expert", x)
    renormalise = config["norm_topk_prob"] and top_k > 1  # the published gate leaves a single weight as it is
    y = routed(own["mlp.gate.weight"], own, x, top_k, eps=1e-20 if renormalise else None)
    return y + mlp(own, "mlp.shared_experts", x) if config["n_shared_experts"] else y


def softmax(x: Tensor) -> Tensor:
    return torch.softmax(x, dim=0)


def routed(
    router: Tensor,
    own: Tensors,
    x: Tensor,
    top_k: int,
    *,
    eps: float | None,
    score: Callable[[Tensor], Tensor] = softmax,
) -> Tensor:
    """The chosen experts' outputs times their scores, which are divided by their sum plus `eps` unless that is None.

    A bias, if there is one, takes part in the choice alone.
    """
    scores = score(router @ x)
    choice = scores + own.get("mlp.gate.e_score_correction_bias", 0.0)
    best = torch.argsort(choice, descending=True)[:top_k].tolist()
    norm_by = 1.0 if eps is None else sum(scores[e] for e in best) + eps
    return sum((scores[e] / norm_by * mlp(own, f"mlp.experts.{e}", x) for e in best), torch.zeros_like(x))


def attention(
    config: dict[str, Any],
    own: Tensors,
    x: Tensor,
    rows: list[int],
    cache: tuple[Callable[[Tensor], Tensor], Callable[[int], int]],
) -> Tensor:
    kept, floats_from = cache
    if "kv_lora_rank" in config:
        return latent_attention(config, own, x, rows, kept)
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"] or config["num_attention_heads"]
    dim, tokens = config.get("head_dim") or config["hidden_size"] // heads, x.shape[0]

    def project(role: str, count: int) -> Tensor:
        y = x @ own[f"self_attn.{role}_proj.weight"].t() + own.get(f"self_attn.{role}_proj.bias", 0.0)
        return y.view(tokens, count, dim)

    q, k, v = (project(role, count) for role, count in (("q", heads), ("k", kv_heads), ("v", kv_heads)))
    if "self_attn.q_norm.weight" in own:  # each head on its own, or all together, before they are rotated
        flat = (q.flatten(1), k.flatten(1)) if config["model_type"] == "olmoe" else (q, k)
        q, k = (
            norm(config, x, own[f"self_attn.{role}_norm.weight"]).view(tokens, -1, dim)
            for role, x in zip("qk", flat, strict=True)
        )
    if config.get("clip_qkv"):
        q, k, v = (x.clamp(-config["clip_qkv"], config["clip_qkv"]) for x in (q, k, v))
    q, k = rotate(config, q), rotate(config, k)
    stored = kept(k), kept(v)
    out = torch.zeros(len(rows), heads, dim, dtype=torch.float64)
    for place, t in enumerate(rows):
        for head in range(heads):
            kv, floats = head // (heads // kv_heads), min(floats_from(t), t + 1)
            k_seen, v_seen = (
                torch.cat((old[:floats, kv], x[floats : t + 1, kv])) for old, x in zip(stored, (k, v), strict=True)
            )
            share = torch.softmax(k_seen @ q[t, head] / math.sqrt(dim), dim=0)
            out[place, head] = share @ v_seen
    return out.view(len(rows), -1) @ own["self_attn.o_proj.weight"].t() + own.get("self_attn.o_proj.bias", 0.0)


def slowed(scaling: dict[str, Any], speed: float) -> float:
    """All pairs alike; by llama3 the more of it, the fewer turns a pair makes in the positions of the training."""
    if scaling.get("rope_type") != "llama3":
        return speed / scaling["factor"]
    turns, low = scaling["original_max_position_embeddings"] * speed / (2 * math.pi), scaling["low_freq_factor"]
    share = min(max((turns - low) / (scaling["high_freq_factor"] - low), 0.0), 1.0)
    return speed * (share + (1 - share) / scaling["factor"])


def rotate(config: dict[str, Any], x: Tensor) -> Tensor:
    """Pairs (d, d + D/2) as complex numbers times exp(i position theta^(-2d/D)); linear scaling divides positions."""
    half, scaling = x.shape[-1] // 2, config.get("rope_scaling") or {"factor": 1.0}
    speed = [slowed(scaling, config["rope_theta"] ** (-d / half)) for d in range(half)]
    angle = torch.arange(x.shape[0], dtype=torch.float64)[:, None, None] * torch.tensor(speed, dtype=torch.float64)
    turned = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat((turned.real, turned.imag), dim=-1)
