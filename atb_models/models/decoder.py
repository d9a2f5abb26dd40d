"""The decoder that every model family shares: pre-norm attention and a dense or mixture-of-experts feed-forward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from atb_models import ops
from atb_models.layers.attention import Attention, attention_sublayer
from atb_models.layers.build import Build
from atb_models.layers.embedding import Embedding, Head
from atb_models.layers.mlp import Mlp, MoE, feed_forward_sublayer
from atb_models.layers.norm import RmsNorm
from atb_models.models.config import ModelConfig
from atb_models.models.families import FAMILIES
from atb_models.ops.composite.decoder import MOST_TOKENS, DecoderWeights
from atb_models.ops.gating import Gating
from atb_models.ops.kv_cache import LayerCache
from atb_models.ops.step import StepInput
from atb_models.ops.sublayers import AttentionSublayer, FeedForwardSublayer


@dataclass
class ResidualStream:
    """The residual stream between two sublayers, and x, which is yet to be added to it; None before the first.

    It is the only one that holds these tensors, so that each is freed as soon as the next one is there.
    """

    x_TH: Tensor | None
    residual_TH: Tensor

    def take(self) -> tuple[Tensor | None, Tensor]:
        """Both tensors, which it holds no longer."""
        taken = self.x_TH, self.residual_TH
        del self.x_TH, self.residual_TH
        return taken

    def __len__(self) -> int:
        return len(self.residual_TH)

    def keep(self, rows_L: Tensor) -> None:
        """Go on with these rows alone."""
        assert self.x_TH is not None
        self.x_TH = ops.select_rows(self.x_TH, rows_L)
        self.residual_TH = ops.select_rows(self.residual_TH, rows_L)


class DecoderLayer(nn.Module):
    """Two sublayers, each with its norm. The add that ends the layer is fused with the norm that follows."""

    def __init__(self, build: Build, config: ModelConfig, index: int) -> None:
        super().__init__()
        self.build = build
        self.is_last = index == config.num_hidden_layers - 1
        attention = FAMILIES[config.model_type].attention or plain_attention
        self.input_norm = RmsNorm(build.within("input_norm"), config.hidden_size, config.rms_norm_eps)
        self.attn = attention(build.within("attn"), config, config.moe_layers[index])
        self.post_norm = RmsNorm(build.within("post_norm"), config.hidden_size, config.rms_norm_eps)
        self.mlp = feed_forward(build.within("mlp"), config, is_moe=config.moe_layers[index])
        self._attention_sublayer = attention_sublayer(self.input_norm, self.attn)
        self._feed_forward_sublayer = feed_forward_sublayer(self.post_norm, self.mlp)

    @property
    def sublayers(self) -> tuple[AttentionSublayer, FeedForwardSublayer] | None:
        """As one operation takes them; None where a sublayer always runs in parts."""
        if self._attention_sublayer is None or self._feed_forward_sublayer is None:
            return None
        return self._attention_sublayer, self._feed_forward_sublayer

    def forward(self, stream: ResidualStream, step: StepInput, rope: tuple[Tensor, Tensor], cache: LayerCache) -> None:
        """Take the stream through the layer.

        After the last layer's attention nothing is read of the tokens whose logits are not wanted: they go no further.
        """
        stream.x_TH = self.reduce(self._attend(stream, step, rope, cache))
        if self.is_last and not step.wants_all_logits:
            stream.keep(step.logits_rows_L)
        if len(stream):
            stream.x_TH = self.reduce(self._feed_forward(stream))

    def _attend(
        self, stream: ResidualStream, step: StepInput, rope: tuple[Tensor, Tensor], cache: LayerCache
    ) -> Tensor:
        if self._attention_sublayer is not None and ops.attention_sublayer.is_served:
            x_TH, stream.residual_TH = ops.attention_sublayer(
                *stream.take(), self._attention_sublayer, *rope, cache, step
            )
            return x_TH
        x_TH, stream.residual_TH = self.input_norm.add(*stream.take())
        return self.attn(x_TH, step, rope, cache)

    def _feed_forward(self, stream: ResidualStream) -> Tensor:
        if self._feed_forward_sublayer is not None and ops.feed_forward_sublayer.is_served:
            x_TH, stream.residual_TH = ops.feed_forward_sublayer(
                *stream.take(), self._feed_forward_sublayer, self.mlp.counter_E
            )
            return x_TH
        x_TH, stream.residual_TH = self.post_norm.add(*stream.take())
        return self.mlp(x_TH)

    def reduce(self, x_TH: Tensor) -> Tensor:
        ranks = self.build.tensor
        return x_TH if ranks.size == 1 else ops.all_reduce(x_TH, ranks.collective())


def plain_attention(build: Build, config: ModelConfig, is_moe: bool) -> Attention:
    """The attention of a layer in a family that brings none of its own."""
    assert config.rope.pairs == "half", "plain attention turns the pairs (d, d + width / 2)"
    return Attention(
        build,
        config.hidden_size,
        config.num_attention_heads,
        config.num_key_value_heads,
        config.head_dim,
        qkv_bias=config.qkv_bias,
        o_bias=config.o_bias,
        qk_norm=config.qk_norm,
        eps=config.rms_norm_eps,
        clip=config.clip_qkv,
    )


def feed_forward(build: Build, config: ModelConfig, *, is_moe: bool) -> Mlp | MoE:
    """The dense or the mixture-of-experts feed-forward of a layer."""
    if not is_moe:
        return Mlp(build, config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
    return MoE(
        build,
        config.hidden_size,
        num_experts=config.num_experts,
        gating=gating(config),
        width=config.moe_intermediate_size,
        shared_width=config.shared_intermediate_size,
        shared_gate=config.shared_expert_gate,
        router_bias=config.router_bias,
    )


def gating(config: ModelConfig) -> Gating:
    """How a token's experts are chosen in the mixture-of-experts layers."""
    return Gating(
        top_k=config.num_experts_per_tok,
        score=config.router_score,
        groups=config.expert_groups,
        top_groups=config.top_expert_groups,
        group_score=config.expert_group_score,
        renormalize_eps=config.norm_topk_eps if config.norm_topk_prob else None,
        scaling=config.routed_scaling_factor,
    )


class Decoder(nn.Module):
    """Token ids in, float32 logits of the wanted tokens out, or the greatest of these."""

    def __init__(self, build: Build, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = Embedding(build, config.vocab_size, config.hidden_size)
        indices = range(config.num_hidden_layers)
        layers = [DecoderLayer(build.within(f"layers.{index}"), config, index) for index in indices]
        self.layers: Sequence[DecoderLayer] = nn.ModuleList(layers)  # type: ignore[assignment]
        self.norm = RmsNorm(build.within("norm"), config.hidden_size, config.rms_norm_eps)
        tied = self.embed if config.tie_word_embeddings else None
        self.lm_head = Head(build, config.vocab_size, config.hidden_size, tied)
        self.inv_freq_D: Tensor
        self.register_buffer("inv_freq_D", config.rope.inverse_frequencies().to(build.device), persistent=False)
        self._weights = self._as_one(build)
        self._feed_forwards = tuple(layer.mlp for layer in self.layers)

    def _as_one(self, build: Build) -> DecoderWeights | None:
        """As one operation takes it; None where ranks exchange results, or a layer always runs in parts."""
        sublayers, norm = [layer.sublayers for layer in self.layers], self.norm.described()
        taken = [pair for pair in sublayers if pair is not None]
        if build.tensor.size > 1 or norm is None or len(taken) < len(sublayers):
            return None
        factor = self.config.rope.table_factor
        return DecoderWeights(self.embed.weight, self.inv_freq_D, factor, taken, norm, self.lm_head.stored)

    def forward(self, step: StepInput, caches: list[LayerCache]) -> Tensor:
        """-> logits [L, V] float32; writes the step's keys and values to `caches`.

        Where the step has `top_logits`: instead what `ops.top_logits` gives, of all ranks side by side. A short step is
        one operation where the rank has nothing to exchange and the backend serves that, but never while operations are
        recorded: graphs, plans and profiles show those of the layers.
        """
        if self._weights is not None and ops.decoder.is_served and step.token_ids_T.shape[0] <= MOST_TOKENS:
            return ops.decoder(self._weights, [mlp.counter_E for mlp in self._feed_forwards], caches, step)
        rope = ops.rope_tables(step.positions_T, self.inv_freq_D, self.config.rope.table_factor)
        stream = ResidualStream(None, self.embed(step.token_ids_T))
        for layer, cache in zip(self.layers, caches, strict=True):
            layer(stream, step, rope, cache)
        x_LH, residual_LH = stream.take()
        if len(residual_LH):  # else the step only reads prompts that go on
            x_LH, _ = self.norm.add(x_LH, residual_LH)
        return self.lm_head(x_LH, step.top_logits)


def build_model(config: ModelConfig, build: Build) -> Decoder:
    """An unfilled decoder on `build.device` (which may be meta); raises ConfigError when the ranks cannot share it."""
    return Decoder(build, config).eval()
