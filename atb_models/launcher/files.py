"""Result files: whole or not there, readable by the owner and the group only."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from atb_models.errors import AtbError

FOLDER_MODE, FILE_MODE = 0o750, 0o640


@contextmanager
def written_whole(target: Path) -> Iterator[Path]:
    """Gives a temporary name beside `target`, which takes its place when the block has ended well; makes the folder.

    Raises AtbError naming the file when it cannot be written; nothing half-written is left.
    """
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        target.parent.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
        yield temporary
        temporary.chmod(FILE_MODE)
        temporary.replace(target)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as RuntimeError
        raise AtbError(f"{target} cannot be written: {getattr(error, 'strerror', None) or error}") from error
    finally:
        with suppress(OSError):
            temporary.unlink()
