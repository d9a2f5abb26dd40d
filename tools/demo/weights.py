"""Between the training model's stacked weights and Hugging Face's names and files."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from .model import DemoModel, Moe


def to_hf(model: DemoModel) -> dict[str, Tensor]:
    """The weights under Hugging Face's names, each expert on its own."""
    out: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        prefix = "" if name.startswith("lm_head.") else "model."
        if name.endswith(".mlp.gate_up"):
            stem = prefix + name.removesuffix("gate_up") + "experts"
            for e, both in enumerate(value.unbind()):
                gate, up = both.chunk(2)
                out[f"{stem}.{e}.gate_proj.weight"] = gate.clone()
                out[f"{stem}.{e}.up_proj.weight"] = up.clone()
        elif name.endswith(".mlp.down"):
            stem = prefix + name.removesuffix("down") + "experts"
            out.update({f"{stem}.{e}.down_proj.weight": one.clone() for e, one in enumerate(value.unbind())})
        else:
            out[prefix + name] = value.clone()
    return out


def from_hf(model: DemoModel, tensors: dict[str, Tensor]) -> None:
    """Fill the model from Hugging Face's names; a missing or left-over tensor is an error."""
    left = {name.removeprefix("model."): value.float() for name, value in tensors.items()}
    state: dict[str, Tensor] = {}
    for i, layer in enumerate(model.layers):
        if not isinstance(layer.mlp, Moe):
            continue
        stem = f"layers.{i}.mlp"
        parts = {
            kind: torch.stack([left.pop(f"{stem}.experts.{e}.{kind}_proj.weight") for e in range(layer.mlp.n_experts)])
            for kind in ("gate", "up", "down")
        }
        state[f"{stem}.gate_up"] = torch.cat((parts["gate"], parts["up"]), dim=1)
        state[f"{stem}.down"] = parts["down"]
    model.load_state_dict({**left, **state}, strict=True)


def save(model: DemoModel, path: Path) -> None:
    """Write model.safetensors in fp16."""
    save_file({k: v.half().contiguous() for k, v in to_hf(model).items()}, path, metadata={"format": "pt"})
    path.chmod(0o644)


def load(model: DemoModel, path: Path) -> None:
    """Read a model.safetensors of any dtype into the fp32 training model."""
    from_hf(model, load_file(path))
