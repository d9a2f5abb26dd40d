"""The engine of a client that uses no server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from atb_models import env
from atb_models.command.engine_options import take_device
from atb_models.command.interrupt import interrupt_ends_at_once
from atb_models.engine.config import EngineConfig
from atb_models.machine.imports import import_torch_for_good

if TYPE_CHECKING:
    from atb_models import LLM


def load(config: EngineConfig) -> LLM:
    """The model, loaded in this process. Raises AtbError."""
    env.set_default("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")
    with interrupt_ends_at_once(), import_torch_for_good():
        from atb_models import LLM
    take_device(config)
    return LLM(config)
