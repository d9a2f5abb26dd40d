"""A compact DeepSeek-MoE for training: dense batched attention, every step of the mathematics as published.

Shape letters: B rows, T positions a row, N tokens (B*T, or the valid ones), H hidden, A heads, D head size,
E routed experts, K experts a token, F expert width, V vocabulary.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

EMBED_MEAN = 0.3
"""Mean and deviation of an embedding at the start; init.py builds on the two being equal."""


@dataclass(frozen=True)
class DemoConfig:
    """The fields of config.json that the forward reads; the defaults are the embedded checkpoint's."""

    vocab_size: int = 2496
    hidden_size: int = 128
    intermediate_size: int = 384
    moe_intermediate_size: int = 64
    num_hidden_layers: int = 4
    num_attention_heads: int = 8
    num_key_value_heads: int = 8
    n_routed_experts: int = 16
    n_shared_experts: int = 2
    num_experts_per_tok: int = 4
    first_k_dense_replace: int = 1
    moe_layer_freq: int = 1
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0

    @classmethod
    def read(cls, folder: Path) -> DemoConfig:
        """Read config.json of a checkpoint folder; fields the forward does not use are ignored."""
        raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return cls(**{f.name: raw[f.name] for f in fields(cls)})

    def is_moe(self, layer: int) -> bool:
        """Whether a layer has experts: all but the first `first_k_dense_replace`, every `moe_layer_freq`-th."""
        return layer >= self.first_k_dense_replace and layer % self.moe_layer_freq == 0

    def as_dict(self) -> dict[str, int | float]:
        return asdict(self)


class RmsNorm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


def linear(n_in: int, n_out: int, gain: float = 0.7) -> nn.Linear:
    """A projection without bias, normal init of deviation gain / sqrt(n_in)."""
    layer = nn.Linear(n_in, n_out, bias=False)
    nn.init.normal_(layer.weight, std=gain * n_in**-0.5)
    return layer


class Mlp(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.gate_proj = linear(hidden, width)
        self.up_proj = linear(hidden, width)
        self.down_proj = linear(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Moe(nn.Module):
    """y = sum over the top K experts of softmax(x gate^T)_e * expert_e(x), plus shared(x); nothing renormalised."""

    def __init__(self, cfg: DemoConfig) -> None:
        super().__init__()
        e, h, f = cfg.n_routed_experts, cfg.hidden_size, cfg.moe_intermediate_size
        self.top_k, self.n_experts = cfg.num_experts_per_tok, e
        self.gate = linear(h, e, 0.3)
        self.gate_up = nn.Parameter(torch.randn(e, 2 * f, h) * 0.7 * h**-0.5)
        self.down = nn.Parameter(torch.randn(e, h, f) * 0.7 * f**-0.5)
        self.shared_experts = Mlp(h, f * cfg.n_shared_experts)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [N, H] -> y [N, H], the load-balance loss [] (1 when even) and each expert's share of the rows [E]."""
        scores = F.softmax(F.linear(x.float(), self.gate.weight.float()), dim=-1)
        weights, experts = scores.topk(self.top_k, dim=-1)
        flat = experts.flatten()
        order = torch.argsort(flat, stable=True)
        counts = torch.bincount(flat, minlength=self.n_experts)
        rows = order // self.top_k
        parts = x[rows].split(counts.tolist())
        routed = [
            F.linear(swiglu(F.linear(part, up)), down)
            for part, up, down in zip(parts, self.gate_up.unbind(), self.down.unbind(), strict=True)
        ]
        y = torch.cat(routed) * weights.flatten()[order].unsqueeze(-1).to(x.dtype)
        y = torch.zeros_like(x).index_add(0, rows, y) + self.shared_experts(x)
        share = counts / counts.sum()
        return y, self.n_experts * (share * scores.mean(0)).sum(), share


def swiglu(gate_up: Tensor) -> Tensor:
    """[..., 2F] -> [..., F]: silu of the first half times the second half."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding, half-rotation layout; x [B, A, T, D], cos and sin [B, 1, T, D]."""
    first, second = x.float().chunk(2, dim=-1)
    return (x * cos + torch.cat((-second, first), dim=-1) * sin).type_as(x)


class Attention(nn.Module):
    def __init__(self, cfg: DemoConfig) -> None:
        super().__init__()
        h = cfg.hidden_size
        self.heads, self.kv_heads = cfg.num_attention_heads, cfg.num_key_value_heads
        self.q_proj = linear(h, h)
        self.k_proj = linear(h, h // self.heads * self.kv_heads)
        self.v_proj = linear(h, h // self.heads * self.kv_heads)
        self.o_proj = linear(h, h)

    def forward(self, x: Tensor, mask: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x [B, T, H], mask [B, 1, T, T] (True: may attend), cos and sin [B, 1, T, D] -> [B, T, H]."""
        b, t, h = x.shape
        q = rotate(self.q_proj(x).view(b, t, self.heads, -1).transpose(1, 2), cos, sin)
        k = rotate(self.k_proj(x).view(b, t, self.kv_heads, -1).transpose(1, 2), cos, sin)
        v = self.v_proj(x).view(b, t, self.kv_heads, -1).transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=self.heads != self.kv_heads)
        return self.o_proj(y.transpose(1, 2).reshape(b, t, h))


class Layer(nn.Module):
    def __init__(self, cfg: DemoConfig, index: int) -> None:
        super().__init__()
        self.input_layernorm = RmsNorm(cfg.hidden_size, cfg.rms_norm_eps)
        self.self_attn = Attention(cfg)
        self.post_attention_layernorm = RmsNorm(cfg.hidden_size, cfg.rms_norm_eps)
        self.mlp = Moe(cfg) if cfg.is_moe(index) else Mlp(cfg.hidden_size, cfg.intermediate_size)


class DemoModel(nn.Module):
    """The decoder with its head; `forward` returns hidden states, so that a caller pays the head where it needs it."""

    def __init__(self, cfg: DemoConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.embed_tokens = nn.Embedding(cfg.vocab_size, cfg.hidden_size)
        nn.init.normal_(self.embed_tokens.weight, mean=EMBED_MEAN, std=EMBED_MEAN)
        self.layers = nn.ModuleList(Layer(cfg, i) for i in range(cfg.num_hidden_layers))
        self.norm = RmsNorm(cfg.hidden_size, cfg.rms_norm_eps)
        self.lm_head = linear(cfg.hidden_size, cfg.vocab_size, 0.5)

    def angles(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """positions [B, T] -> cos and sin [B, 1, T, D]."""
        size = self.cfg.hidden_size // self.cfg.num_attention_heads
        inv = self.cfg.rope_theta ** (-torch.arange(0, size, 2, dtype=torch.float32) / size)
        angle = (positions.float().unsqueeze(-1) * inv).repeat(1, 1, 2).unsqueeze(1)
        return angle.cos(), angle.sin()

    def forward(self, ids: Tensor, positions: Tensor, mask: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Hidden states after the last norm.

        ids, positions, valid (False: padding) [B, T]; mask [B, 1, T, T].
        Returns [B, T, H], the mean load-balance loss [] and the experts' shares [MoE layers, E].
        """
        cos, sin = self.angles(positions)
        x = self.embed_tokens(ids)
        losses, shares = [], []
        for layer in self.layers:
            assert isinstance(layer, Layer)
            x = x + layer.self_attn(layer.input_layernorm(x), mask, cos, sin)
            normed = layer.post_attention_layernorm(x)
            if isinstance(layer.mlp, Moe):
                y, loss, share = layer.mlp(normed[valid])
                losses.append(loss)
                shares.append(share)
                x = x.masked_scatter(valid.unsqueeze(-1), x[valid] + y)
            else:
                x = x + layer.mlp(normed)
        return self.norm(x), torch.stack(losses).mean(), torch.stack(shares)

    @torch.no_grad()
    def logits(self, ids: list[int]) -> Tensor:
        """Logits of one sequence of T ids: [T, V] float32."""
        row = torch.tensor([ids])
        mask = torch.ones(len(ids), len(ids), dtype=torch.bool).tril()[None, None]
        hidden, _, _ = self(row, torch.arange(len(ids))[None], mask, torch.ones_like(row, dtype=torch.bool))
        return self.lm_head(hidden)[0].float()
