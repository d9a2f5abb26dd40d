"""What --plan and --print_graph look at."""

from __future__ import annotations

from dataclasses import dataclass

from atb_models.limits import Limits
from atb_models.models.config import ModelConfig
from atb_models.models.dtypes import AUTO


@dataclass(frozen=True)
class Subject:
    """What is looked at: a model on `tp` ranks of a device type, within the limits of an engine."""

    model: ModelConfig
    folder: str
    dtype: str  # fp16, bf16 or fp32
    tp: int
    device: str
    limits: Limits
    input_length: int  # tokens of a prompt
    kv_blocks: int | None = None  # asked for
    quantize: str | None = None
    kv_dtype: str = AUTO
