"""The flags of every program that loads a model; `engine_options` makes an EngineConfig of them."""

from __future__ import annotations

import argparse

from atb_models.command.values import AUTO, json_object, positive, positive_or_auto, true_or_false, whole_number
from atb_models.engine.config import DEVICES, DTYPE_CHOICES, LOAD_FORMATS, QUANTIZE, EngineConfig
from atb_models.models.dtypes import KV_DTYPES, dtype_name

MAX_BLOCK_SIZE = 576

Group = argparse._ArgumentGroup


def model_flags(group: Group) -> None:
    add = group.add_argument
    add("--model_path", help="folder of the checkpoint (default: the embedded toy checkpoint)")
    add("--download", action="store_true", help="fetch a --model_path that is a repository name (needs the extra hub)")
    trust_flag(group)
    add("--load_tokenizer", type=true_or_false, default=True, metavar="{True,False}",
        help="False: token ids in, token ids out")  # fmt: skip
    add("--chat_template", help="Jinja template, a file with one, or the name of one of the checkpoint's"
        " (default: the checkpoint's)")  # fmt: skip
    dtype_flag(group)
    device_flag(group)
    add("--tp", type=positive_or_auto, default=AUTO,
        help="tensor-parallel ranks, any number up to that of the query heads; -1: under `atb-models launch` and the"
        " example scripts as many as ASCEND_RT_VISIBLE_DEVICES names, which are 0 to 7 where it is unset, as far as"
        " they exist; under torchrun as many as it has started; else 1")  # fmt: skip
    add("--load_format", choices=LOAD_FORMATS, default=EngineConfig.load_format,
        help="dummy: random weights, for measuring")  # fmt: skip
    quantize_flag(group)
    add("--graph_capture", action="store_const", const=True,
        help="replay decode steps as captured graphs, or refuse (default: on npu, where it can be)")  # fmt: skip
    add("--no_graph_capture", action="store_const", const=False, dest="graph_capture", help="launch every operator")
    add("--deterministic", action="store_true", help="the same bits in every run, on npu and cuda at the price of time")
    add("--config_overrides", type=json_object, metavar="JSON",
        help='fields in place of those of config.json, as {"num_hidden_layers": 4}')  # fmt: skip


def trust_flag(group: Group) -> None:
    group.add_argument("--trust_remote_code", "-trust_remote_code", action="store_true",
        help="let a tokenizer run its checkpoint's code; model code is never run")  # fmt: skip


def device_flag(group: Group) -> None:
    group.add_argument("--device", choices=DEVICES,
        help="what the model runs on (default: the first that is there, in this order)")  # fmt: skip


def length_flag(group: Group) -> None:
    group.add_argument("--max_seq_len", type=positive, help="prompt and answer in tokens (default: the model's limit)")


def name_flag(group: Group) -> None:
    group.add_argument("--model_name", help="what requests call the model (default: the folder's name, or demo)")


def dtype_flag(group: argparse._ActionsContainer) -> None:
    group.add_argument("--dtype", type=dtype_name, choices=DTYPE_CHOICES, default=EngineConfig.dtype,
        help="auto: what the checkpoint's config.json says, else fp16; torch's names, such as bfloat16, mean the same"
    )  # fmt: skip


def quantize_flag(group: argparse._ActionsContainer) -> None:
    group.add_argument("--quantize", choices=QUANTIZE,
        help="weights of linear maps as w8a16: int8, a scale for each output; w4a16: 4 bits, a scale for 128 inputs;"
        " w8a8_dynamic: int8, and int8 activations, a scale for each token (default: as the checkpoint)"
    )  # fmt: skip


def kv_dtype_flag(group: argparse._ActionsContainer) -> None:
    group.add_argument("--kv_dtype", choices=KV_DTYPES, default=EngineConfig.kv_dtype,
        help="data type of the KV cache; auto: the run's; int8: a scale for each token and head"
    )  # fmt: skip


def cache_flags(group: Group) -> None:
    """What bounds a step and the KV cache, whoever brings the requests."""
    add = group.add_argument
    add("--max_position_embeddings", type=positive, help="positions of the model (default: config.json's)")
    add("--max_prefill_tokens", type=positive_or_auto, default=AUTO, help="prompt tokens of a step; -1: automatic")
    add("--block_size", type=_block_size, default=EngineConfig.block_size, help="tokens of a KV cache block")
    add("--kv_blocks", type=positive,
        help="blocks of the KV cache (default: what memory allows, at most what is needed)")  # fmt: skip
    kv_dtype_flag(group)
    add("--prefix_cache", choices=("on", "off"), help="reuse equal prompt beginnings (default: on; off in a benchmark)")


def _block_size(text: str) -> int:
    value = whole_number(text, 1, f"a whole number from 1 to {MAX_BLOCK_SIZE}")
    if value > MAX_BLOCK_SIZE:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 to {MAX_BLOCK_SIZE}, not {value}")
    return value
