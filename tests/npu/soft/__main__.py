"""`python -m tests.npu.soft [--devices N] COMMAND ...`: become COMMAND with N pretend devices (default 1)."""

from __future__ import annotations

import os
import sys

from tests.npu.soft import environment

words = sys.argv[1:]
count = int(words[1]) if words[:1] == ["--devices"] else 1
command = words[2:] if words[:1] == ["--devices"] else words
os.environ.update(environment(count))
os.execvp(command[0], command)
