"""Memory shared by processes of one host. It has no name, so nothing can be left behind in /dev/shm or elsewhere."""

from __future__ import annotations

import mmap
import os
import secrets

from atb_models.errors import RankError

TOKEN_BYTES = 16  # at the start; they show that the opened file is the one that the address was made for


class Segment:
    """Shared memory, open until all have mapped it; other processes of this host open it by its `address`."""

    def __init__(self, size: int) -> None:
        """`size` in bytes."""
        self._fd = os.memfd_create("atb_models")
        os.ftruncate(self._fd, size)
        self.memory = mmap.mmap(self._fd, size)
        token = secrets.token_bytes(TOKEN_BYTES)
        self.memory[:TOKEN_BYTES] = token
        self.address = f"{os.getpid()}:{self._fd}:{size}:{token.hex()}"

    def close(self) -> None:
        """Afterwards no process can open it; the memory is freed when the last process that has it ends."""
        os.close(self._fd)


def open_segment(address: str) -> mmap.mmap:
    """Map the segment that another process of this host made. Raises RankError if it cannot be opened."""
    pid, fd, size, token = address.split(":")
    path = f"/proc/{pid}/fd/{fd}"
    try:
        own = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            memory = mmap.mmap(own, int(size))
        finally:
            os.close(own)
    except (OSError, ValueError) as error:
        raise RankError(
            f"{path}, the memory that rank 0 shares, cannot be opened: {error};"
            " ranks of one host must see each other's processes and belong to the same user"
        ) from None
    if memory[:TOKEN_BYTES].hex() != token:
        raise RankError(f"{path} is not the memory that rank 0 shared: rank 0 has ended")
    return memory
