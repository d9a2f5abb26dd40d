"""The registry of model families: each is one short module with what only that family has."""

from __future__ import annotations

from typing import Any, Protocol

from atb_models.models.config_fields import Fields
from atb_models.models.families import deepseek, qwen, xverse


class Family(Protocol):
    """What a family's module defines."""

    ROUTER: str  # the router's weight, within a layer
    SHARED_EXPERTS: str  # the shared experts' prefix, within a layer; their gate's is the same and "_gate"
    PLAIN_CHAT_TEMPLATE: str  # the documented plain format, for a checkpoint without a chat template

    def parse_config(self, fields: Fields) -> dict[str, Any]:
        """The family's own fields of ModelConfig."""


FAMILIES: dict[str, Family] = {"deepseek": deepseek, "qwen2_moe": qwen, "xverse": xverse}
