"""How much memory the bodies of requests may take together, from their first byte until they are with the engine."""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any

from atb_models.server.errors import Busy

SMALL_BYTES = 1 << 16  # up to here a body is small; large ones have a share of their own, so that they crowd none out
SHARE_BYTES = 64 << 20  # that all small bodies may take, and all large ones
RETRY_S = 1
HELD = "atb_models.held_body"  # of a request's scope: its HeldBody
# What a body takes once it is read: itself, its text, and Python's values, of which a comma stands before each.
COPIES, VALUE_BYTES = 3, 40


class HeldBodies:
    """The shares of small and of large bodies, of `share_bytes` each."""

    def __init__(self, share_bytes: int = SHARE_BYTES) -> None:
        self.share_bytes = share_bytes
        self.held = {False: 0, True: 0}  # bytes by whether they belong to a large body

    def body(self) -> HeldBody:
        """A body of which nothing is there yet."""
        return HeldBody(self)


@dataclass
class HeldBody:
    """What one body takes of its share."""

    all: HeldBodies
    num_bytes: int = 0

    def read(self, size: int) -> None:
        """So many bytes are there now. Raises Busy where others hold too much for that; one alone always fits."""
        self._take(size, is_large=size > SMALL_BYTES)

    def parse(self, body: bytes) -> None:
        """The body is complete and will be parsed. Raises Busy as `read`."""
        if len(body) > SMALL_BYTES:
            self._take(COPIES * len(body) + VALUE_BYTES * body.count(b","), is_large=True)

    def release(self) -> None:
        """It is with the engine, or refused. May be repeated."""
        self.all.held[self.num_bytes > SMALL_BYTES] -= self.num_bytes
        self.num_bytes = 0

    def _take(self, size: int, *, is_large: bool) -> None:
        self.release()
        others = self.all.held[is_large]
        if others and others + size > self.all.share_bytes:
            kind = "large" if is_large else "small"
            raise Busy(f"the service holds {others} bytes of {kind} requests; try again later", RETRY_S)
        self.all.held[is_large] += size
        self.num_bytes = size


def release_body(scope: MutableMapping[str, Any]) -> None:
    """The request's body is with the engine."""
    if (held := scope.get(HELD)) is not None:
        held.release()
