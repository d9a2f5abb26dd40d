"""No garbage collection looks through what torch's import leaves, in our own programs."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path

import pytest
import torch  # noqa: F401 (it is there before the tests)

from atb_models.machine.imports import import_compiler_for_good, import_torch_for_good

# Runs run_pa.py with the arguments and ends with a line: collections so far, objects that the next one looks through.
COUNTED = """
import gc, runpy, sys
sys.argv = ["run_pa.py", *sys.argv[1:]]
try:
    runpy.run_path("run_pa.py", run_name="__main__")
except SystemExit as end:
    assert not end.code
print(sum(generation["collections"] for generation in gc.get_stats()), len(gc.get_objects()), gc.isenabled())
"""


@pytest.mark.parametrize("flags", [["--max_output_length", "1"], ["--print_graph"]])
def test_a_command_collects_little(root: Path, flags: list[str]) -> None:
    command = [sys.executable, "-c", COUNTED, "--device", "cpu", *flags]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    collections, objects, enabled = done.stdout.splitlines()[-1].split()
    assert int(collections) < 200 and int(objects) < 100_000 and enabled == "True"


def test_nothing_changes_where_torch_was_imported_before() -> None:
    frozen = gc.get_freeze_count()
    for block in (import_torch_for_good, import_compiler_for_good):
        with block():
            assert gc.isenabled()
        assert gc.isenabled() and gc.get_freeze_count() == frozen
