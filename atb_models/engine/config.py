"""What an engine is started with."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from atb_models.demo import demo_path
from atb_models.errors import ConfigError
from atb_models.fetch import model_folder
from atb_models.layers.storage import METHODS
from atb_models.limits import BLOCK_SIZE
from atb_models.models.config import ModelConfig
from atb_models.models.config_reader import load_model_config
from atb_models.models.dtypes import AUTO, DEFAULT, DTYPES, KV_DTYPES, dtype_name
from atb_models.wording import shown

DEVICES = ("npu", "cuda", "cpu")
DTYPE_CHOICES = (*DTYPES, AUTO)
LOAD_FORMATS = ("auto", "dummy")
QUANTIZE = tuple(METHODS)
# The largest that each may be: tokens and blocks are counted in 32 bits, and a step has a place for every request.
SIZES = {
    "tp": 1 << 12,
    "block_size": 1 << 16,
    "max_batch_size": 1 << 14,
    "max_seq_len": 2**31 - 1,
    "max_prefill_tokens": 2**31 - 1,
    "kv_blocks": 2**31 - 1,
}
MOST_LEVELS = 16  # of lists and dicts in an override; config.json has 3

Constructor = TypeVar("Constructor", bound=Callable[..., None])


@dataclass(frozen=True)
class EngineConfig:
    """The arguments of `LLM`, checked one by one; what needs the model's config is checked when it is read.

    `LLM` takes it whole or field by field; its constructor states the fields once more, with the same defaults.
    Lengths are in tokens. None: `model_path` the embedded checkpoint, `device` the first present of npu, cuda and cpu,
    `max_seq_len` the model's limit, `max_prefill_tokens` 2048 a step, `kv_blocks` what memory allows, `graph_capture`
    what the device can, `quantize` weights in `dtype`. `kv_dtype` auto: the KV cache in `dtype`.
    """

    model_path: str | None = None
    dtype: str = DEFAULT
    device: str | None = None
    tp: int = 1
    block_size: int = BLOCK_SIZE
    max_batch_size: int = 64
    max_seq_len: int | None = None
    max_prefill_tokens: int | None = None
    kv_blocks: int | None = None
    prefix_cache: bool = True
    chat_template: str | None = None
    config_overrides: dict[str, Any] | None = None
    trust_remote_code: bool = False
    load_format: str = "auto"
    deterministic: bool = False
    graph_capture: bool | None = None
    quantize: str | None = None
    kv_dtype: str = AUTO

    def __post_init__(self) -> None:
        if self.model_path is not None:  # a Path is welcome; other processes get the text
            object.__setattr__(self, "model_path", os.fspath(self.model_path))
        if (dtype := dtype_name(str(self.dtype))) in DTYPE_CHOICES:  # torch.float16 is welcome, and its name
            object.__setattr__(self, "dtype", dtype)
        _one_of("dtype", self.dtype, DTYPE_CHOICES)
        _one_of("load_format", self.load_format, LOAD_FORMATS)
        if self.device is not None:
            _one_of("device", self.device, DEVICES)
        if self.quantize is not None:
            _one_of("quantize", self.quantize, QUANTIZE)
        _one_of("kv_dtype", self.kv_dtype, KV_DTYPES)
        for name in ("prefix_cache", "trust_remote_code", "deterministic"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} must be True or False, not {getattr(self, name)!r}")
        if not isinstance(self.graph_capture, bool | None):
            raise ConfigError(f"graph_capture must be True, False or None, not {self.graph_capture!r}")
        self._check_overrides()
        for name, most in SIZES.items():
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise ConfigError(f"{name} must be a whole number of 1 or more, not {shown(value)}")
            if value is not None and value > most:
                raise ConfigError(f"{name} must be at most {most}, not {shown(value)}")

    def _check_overrides(self) -> None:
        overrides = self.config_overrides
        if overrides is None:
            return
        try:
            if not isinstance(overrides, dict) or not all(isinstance(name, str) for name in overrides):
                raise TypeError("not a dict of names")
            if _depth(json.loads(json.dumps(overrides))) > MOST_LEVELS:
                raise ValueError("nested too deeply")
        except (TypeError, ValueError, RecursionError) as error:
            raise ConfigError(
                f"config_overrides must be a dict of JSON values, not {shown(overrides)}: {error}"
            ) from None

    @property
    def folder(self) -> Path:
        """The checkpoint's folder, the embedded one's where no path was given; see fetch.py for what it raises."""
        return demo_path() if self.model_path is None else model_folder(self.model_path)

    def load_model_config(self, *, log: bool = False, generation_wanted: bool = False) -> ModelConfig:
        """The checkpoint's config.json with the overrides; see models/config.py for what it raises and logs."""
        return load_model_config(self.folder, self.config_overrides, log=log, generation_wanted=generation_wanted)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> EngineConfig:
        return cls(**json.loads(text))


def _one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name} must be one of {', '.join(allowed)}, not {value!r}")


def config_or_fields(init: Constructor) -> Constructor:
    """Lets a constructor that states the fields of EngineConfig, for editors and `help`, be called with one as well.

    Whichever the caller gives, `init` gets one EngineConfig as its first argument and nothing else. Raises ConfigError,
    naming the fields, where both are given, even with values that are the defaults.
    """

    @functools.wraps(init)
    def construct(self: Any, model_path: str | os.PathLike[str] | EngineConfig | None = None, **fields: Any) -> None:
        for name in fields.keys() - {field.name for field in dataclasses.fields(EngineConfig)}:
            raise TypeError(f"{init.__qualname__}() got an unexpected keyword argument {name!r}")
        if isinstance(model_path, EngineConfig):
            if fields:
                raise ConfigError(
                    f"an EngineConfig and {', '.join(fields)} are both given; use dataclasses.replace(config,"
                    f" {next(iter(fields))}=...)"
                )
            config = model_path
        else:
            config = EngineConfig(**{"model_path": model_path, **fields})
        init(self, config)

    return cast(Constructor, construct)


def _depth(value: Any) -> int:
    """Levels of lists and dicts in a JSON value."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(_depth, inner), default=0)
