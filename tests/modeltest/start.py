"""`python -m modeltest` of this source tree, installed or not, from any folder: what run.sh starts."""

import sys
from pathlib import Path

if sys.version_info < (3, 10):  # noqa: UP036 (whatever python3 is may be older than what we declare)
    sys.exit(f"atb-models: error: Python 3.10 or newer is needed, {sys.executable} is {sys.version.split()[0]}")

ROOT = Path(__file__).resolve().parents[2]
sys.path[:1] = [str(ROOT), str(ROOT / "tests")]

from modeltest.__main__ import main  # noqa: E402

sys.exit(main())
