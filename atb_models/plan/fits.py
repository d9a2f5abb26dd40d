"""Which cards a model fits on: the memory of 1, 2, 4, 8 and as many as asked for, and what the model needs on each."""

from __future__ import annotations

from dataclasses import dataclass, replace

from atb_models import env
from atb_models.errors import ConfigError
from atb_models.plan.capacity import Deployment
from atb_models.plan.memory import RankMemory
from atb_models.wording import GIB

CARDS = (1, 2, 4, 8)
CARD_GIB = (24, 32, 64)
# Transformers deployment guides plan 2 bytes a parameter and a fifth more for the rest, on any number of cards.
RULE_BYTES = 2 * 1.2
RULE = "2 x 1.2 bytes a parameter, split evenly"


@dataclass(frozen=True)
class Fit:
    """The model on a number of cards, a rank each. refusal: why that many ranks cannot share it."""

    cards: int
    memory: RankMemory | None
    refusal: str
    rule_bytes: float  # of a card, by the rule of thumb

    def missing(self, card_gib: int) -> int:
        """Bytes that a card of this size lacks for the model and one KV block; 0: it fits."""
        assert self.memory is not None, self.refusal
        return max(0, self.memory.needed(1) - usable(card_gib))

    def kv_tokens(self, card_gib: int) -> int:
        """Tokens of KV cache that fit beside the model, in whole blocks."""
        assert self.memory is not None, self.refusal
        return self.memory.kv_blocks(usable(card_gib)) * self.memory.block_size


def kept_free(card_gib: float) -> float:
    """GiB of a card that an engine does not use."""
    return card_gib - usable(card_gib) / GIB


def usable(card_gib: float) -> int:
    """Bytes of a card that an engine uses: NPU_MEMORY_FRACTION of it minus RESERVED_MEMORY_GB.

    Negative if the reserve is more than that.
    """
    share, reserved = float(env.get("NPU_MEMORY_FRACTION")), int(env.get("RESERVED_MEMORY_GB"))
    return int(card_gib * share * GIB) - reserved * GIB


def fits(deployment: Deployment, memory: RankMemory, parameters: int) -> list[Fit]:
    """A row for each number of cards, that of the deployment's ranks too, whose memory is given."""
    known = {deployment.size: memory}
    numbers = sorted({*CARDS, deployment.size})
    return [_fit(deployment, cards, known.get(cards), RULE_BYTES * parameters / cards) for cards in numbers]


def _fit(deployment: Deployment, cards: int, memory: RankMemory | None, rule_bytes: float) -> Fit:
    try:
        return Fit(cards, memory or replace(deployment, size=cards).memory(), "", rule_bytes)
    except ConfigError as error:
        return Fit(cards, None, str(error), rule_bytes)
