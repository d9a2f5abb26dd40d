"""`atb_models.launch` of this source tree, installed or not, from any folder."""

import sys
from pathlib import Path

if sys.version_info < (3, 10):  # noqa: UP036 (whatever python3 is may be older than what we declare)
    sys.exit(f"atb-models: error: Python 3.10 or newer is needed, {sys.executable} is {sys.version.split()[0]}")

sys.path[0] = str(Path(__file__).resolve().parents[1])

from atb_models.command.interrupt import interrupt_ends_at_once  # noqa: E402

with interrupt_ends_at_once():
    from atb_models.launch import main

sys.exit(main())
