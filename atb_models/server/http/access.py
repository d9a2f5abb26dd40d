"""Who may send requests, and how much."""

from __future__ import annotations

from dataclasses import dataclass

from atb_models.server.http.held_bodies import SHARE_BYTES


@dataclass(frozen=True)
class Access:
    """Who may send requests, and of what size. keys: empty: none is needed. cors_origins: other hosts' web pages."""

    keys: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    max_body_bytes: int = 8 << 20
    body_timeout_s: float = 30.0
    held_bytes: int = SHARE_BYTES
