"""The arguments of the C functions, field by field as in csrc/api.h."""

from __future__ import annotations

from ctypes import Structure, c_float, c_int32, c_int64, c_void_p
from typing import Any

import torch

MORE_SCRATCH = 5  # Status
FORMATS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.int8: 3}
FORMAT_I4, FORMAT_I8_DOTS = 4, 5
ACTIVATIONS = {"float": 0, "token": 1, "static": 2}


def _fields(kind: Any, names: str) -> list[tuple[str, Any]]:
    return [(name, kind) for name in names.split()]


class Scales(Structure):
    _fields_ = [("data", c_void_p), *_fields(c_int64, "block slot head")]


class AttentionCall(Structure):
    _fields_ = [
        *_fields(c_void_p, "q k v out table starts kv_lens scratch"),
        *_fields(c_int64, "q_row k_block k_slot k_head v_block v_slot v_head table_row"),
        *_fields(c_int32, "tokens sequences heads kv_heads head_dim block_size blocks table_width format threads"),
        ("scale", c_float),
        *_fields(Scales, "k_scale v_scale"),
    ]


class LatentCall(Structure):
    _fields_ = [
        *_fields(c_void_p, "q maps latents keys out table starts kv_lens scratch"),
        *_fields(c_int64, "q_row latent_block latent_slot key_block key_slot table_row"),
        *_fields(c_int32, "tokens sequences heads nope rotary value latent block_size blocks table_width"),
        *_fields(c_int32, "format threads"),
        ("scale", c_float),
        *_fields(Scales, "latent_scale key_scale"),
    ]


class PanelWeight(Structure):
    _fields_ = [
        *_fields(c_void_p, "data scale"),
        *_fields(c_int32, "outputs inputs format unit activations"),
        *_fields(c_void_p, "offset input_scale input_offset quant_bias"),
    ]


class LinearCall(Structure):
    _fields_ = [
        ("x", c_void_p),
        ("weight", PanelWeight),
        *_fields(c_void_p, "bias out scratch"),
        *_fields(c_int64, "x_row out_row"),
        *_fields(c_int32, "rows x_format bias_format out_format threads"),
    ]


class PackCall(Structure):
    _fields_ = [
        *_fields(c_void_p, "source to"),
        *_fields(c_int64, "source_row"),
        *_fields(c_int32, "outputs inputs step format threads"),
    ]


class ExpertsCall(Structure):
    _fields_ = [
        *_fields(c_void_p, "x chosen weights"),
        *_fields(PanelWeight, "gate_up down"),
        *_fields(c_void_p, "out counter scratch"),
        *_fields(c_int64, "x_row"),
        *_fields(c_int32, "tokens experts top_k format threads"),
    ]


class NormCall(Structure):
    _fields_ = [
        *_fields(c_void_p, "x residual weight out sum"),
        *_fields(c_int64, "x_row residual_row"),
        *_fields(c_int32, "rows width format weight_format threads"),
        ("eps", c_float),
    ]


class SwigluCall(Structure):
    _fields_ = [*_fields(c_void_p, "x out"), ("x_row", c_int64), *_fields(c_int32, "rows width format threads")]


class SharedGateCall(Structure):
    _fields_ = [
        *_fields(c_void_p, "shared x weight out"),
        *_fields(c_int64, "shared_row x_row"),
        *_fields(c_int32, "rows width shared_width format weight_format threads"),
    ]


class RopeTablesCall(Structure):
    _fields_ = [
        *_fields(c_void_p, "positions frequencies cos sin"),
        *_fields(c_int32, "tokens half threads"),
        ("factor", c_float),
    ]


class RopeCall(Structure):
    _fields_ = [
        *_fields(c_void_p, "q k v cos sin slots q_out k_cache v_cache"),
        *_fields(c_int64, "q_row k_row v_row k_block k_slot k_head v_block v_slot v_head"),
        *_fields(c_int32, "tokens heads kv_heads head_dim half block_size blocks format threads"),
        *_fields(Scales, "k_scale v_scale"),
    ]


class LatentRopeCall(Structure):
    _fields_ = [
        *_fields(c_void_p, "q latent key cos sin slots q_out latents keys"),
        *_fields(c_int64, "q_row latent_row key_row latent_block latent_slot key_block key_slot"),
        *_fields(c_int32, "tokens heads head_dim half width block_size blocks format threads"),
        *_fields(Scales, "latent_scale key_scale"),
    ]


class TopLogitsCall(Structure):
    _fields_ = [
        *_fields(c_void_p, "x out"),
        ("x_row", c_int64),
        *_fields(c_int32, "rows width count first format threads"),
    ]


class GatingCall(Structure):
    _fields_ = [
        *_fields(c_void_p, "scores bias weights chosen scratch"),
        *_fields(c_int32, "tokens experts top_k sigmoid groups top_groups group_best renormalize threads"),
        *_fields(c_float, "renormalize_eps scaling"),
    ]


class SublayerCall(Structure):
    _fields_ = [
        *_fields(c_void_p, "x residual out sum scratch"),
        *_fields(c_int64, "scratch_floats x_row residual_row"),
        *_fields(c_int32, "tokens threads"),
    ]


class AttentionLayer(Structure):
    _fields_ = [
        ("norm", c_void_p),
        *_fields(PanelWeight, "qkv o"),
        *_fields(c_void_p, "q_norm k_norm qkv_bias o_bias k_cache v_cache"),
        *_fields(c_int64, "k_block k_slot k_head v_block v_slot v_head"),
        *_fields(c_int32, "heads kv_heads head_dim block_size blocks"),
        *_fields(c_int32, "format norm_format qkv_bias_format o_bias_format"),
        *_fields(c_float, "eps q_eps k_eps scale"),
        *_fields(Scales, "k_scale v_scale"),
    ]


class AttentionStep(Structure):
    _fields_ = [
        *_fields(c_void_p, "cos sin slots table starts kv_lens"),
        ("table_row", c_int64),
        *_fields(c_int32, "sequences table_width half"),
    ]


class FeedForwardLayer(Structure):
    _fields_ = [
        ("norm", c_void_p),
        *_fields(PanelWeight, "gate_up down router experts_gate_up experts_down"),
        *_fields(c_void_p, "router_bias shared_gate counter"),
        *_fields(c_int32, "experts top_k sigmoid groups top_groups group_best renormalize"),
        *_fields(c_int32, "format norm_format shared_gate_format"),
        *_fields(c_float, "eps renormalize_eps scaling"),
    ]


class SublayerPair(Structure):
    _fields_ = _fields(c_void_p, "attention feed_forward")


class DecoderModel(Structure):
    _fields_ = [
        *_fields(c_void_p, "embedding norm frequencies layers"),
        ("head", PanelWeight),
        *_fields(c_int32, "vocabulary hidden half count format norm_format"),
        *_fields(c_float, "eps rope_factor"),
    ]


class DecoderCall(Structure):
    _fields_ = [
        *_fields(c_void_p, "ids positions wanted"),
        ("step", AttentionStep),
        *_fields(c_void_p, "out keys scratch"),
        ("scratch_floats", c_int64),
        *_fields(c_int32, "tokens rows count threads"),
    ]
