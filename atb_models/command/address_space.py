"""Limits of this process that torch does not survive, looked at before it is imported."""

from __future__ import annotations

import resource

from atb_models.errors import CapacityError

# Address space that a process takes with torch imported and nothing loaded; below about 400 MiB its import aborts.
TORCH_BYTES = 640 << 20
LOOK_BYTES = 704 << 20  # with what a trace imports, and what it says of a model


def check_address_space(needed: int = TORCH_BYTES, what: str = "torch alone") -> None:
    """Raises CapacityError, with both numbers, where `ulimit -v` is less than what `what` needs."""
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY and soft < needed:
        raise CapacityError(
            f"ulimit -v allows {soft >> 20} MiB of address space, but {what} takes {needed >> 20} MiB; raise it"
        )
