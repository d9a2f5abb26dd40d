"""The threads of the ranks that a process starts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from atb_models.ranks.spawn import spawn

# A rank on a machine of 16 cores.
SITE = "import os\nos.sched_getaffinity = lambda pid: set(range(16))\n"


@pytest.mark.parametrize(("chosen", "expected"), [(3, "3"), (100, "8")])
def test_ranks_take_no_more_threads_than_their_starter(
    chosen: int, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch.set_num_threads in rank 0's process is the user's choice for all ranks."""
    (tmp_path / "sitecustomize.py").write_text(SITE)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ['PYTHONPATH']}")
    monkeypatch.delenv("OMP_NUM_THREADS")
    before = torch.get_num_threads()
    torch.set_num_threads(chosen)
    try:
        with spawn(2, "cpu", str(tmp_path / "threads"), "tests.ranks.toys:report_threads") as group:
            group.barrier("the report")
        assert (tmp_path / "threads").read_text() == expected
        assert torch.get_num_threads() == chosen
    finally:
        torch.set_num_threads(before)
