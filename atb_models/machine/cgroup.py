"""The control groups of this process, which may limit it further than the machine does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

ROOT, OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def cgroup_folders(controller: str, root: Path = ROOT, own: Path = OWN) -> Iterator[Path]:
    """Folders of this process's group and the groups above it, innermost first (v2, and v1's `controller`)."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return
    for _, controllers, path in (line.split(":", 2) for line in lines):
        if controllers and controller not in controllers.split(","):
            continue
        base = root / controller if controllers else root
        folder = PurePosixPath(path.strip("/"))
        yield from (base / level for level in (folder, *folder.parents))
