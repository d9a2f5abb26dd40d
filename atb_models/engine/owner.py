"""The process that an engine belongs to: a fork of it has copies of its objects, but not its ranks and threads."""

from __future__ import annotations

import os

from atb_models.errors import RequestError


class Owner:
    """The process that made this object."""

    def __init__(self) -> None:
        self._pid = os.getpid()

    @property
    def is_here(self) -> bool:
        """Whether this is that process."""
        return os.getpid() == self._pid

    def check(self) -> None:
        """Raise RequestError in any other process. Steps of a fork would reach the ranks behind their owner's back."""
        if not self.is_here:
            raise RequestError(
                f"this LLM belongs to process {self._pid} and cannot be used in process {os.getpid()},"
                " which was forked from it; make an LLM in each process that needs one, after the fork"
            )
