"""A ModelSlim folder of two linear maps, for tests of what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from atb_models.errors import AtbError
from tests.models.quantized.modelslim.writer import Form, Written, every, quantized, save
from tests.models.quantized.reading import opened, read

Q, K = "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.k_proj"
GENERATOR = torch.Generator().manual_seed(5)
TENSORS = {
    f"{Q}.weight": torch.randn(8, 128, generator=GENERATOR),
    f"{K}.weight": torch.randn(8, 128, generator=GENERATOR),
    "model.norm.weight": torch.ones(128),
}
OLD, NEW = "quant_model_description_{}.json", "quant_model_description.json"


def write(folder: Path, kind: str = "W8A16", version: str = "1.0.0", **form: Any) -> Written:
    written = quantized(TENSORS, Form(kind.lower(), every(kind), version, **form))
    save(folder, written, Form(kind.lower(), every(kind), version, **form), {})
    return written


def describe(folder: Path, **entries: Any) -> None:
    """Put entries (dots of their names written as /) into the description; None takes one away."""
    file = next(folder.glob("quant_model_description*.json"))
    content = json.loads(file.read_text()) | {name.replace("/", "."): value for name, value in entries.items()}
    file.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))


def describe_null(folder: Path, name: str) -> None:
    file = next(folder.glob("quant_model_description*.json"))
    file.write_text(json.dumps(json.loads(file.read_text()) | {name: None}))


def configure(folder: Path, **fields: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def fails(folder: Path, error: type[AtbError], *texts: str) -> None:
    """Reading the scheme or opening it ends in that error, whose message has these texts."""
    with pytest.raises(error) as caught, opened(folder) as (_, source):
        for name in sorted(source.names()):
            read(source, name, torch.float32)
    for text in texts:
        assert text in str(caught.value)
