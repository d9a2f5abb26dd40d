"""`python -m atb_models.launcher` is run_pa.py, for an installed package."""

import sys

from atb_models.command.interrupt import interrupt_ends_at_once
from atb_models.ranks.lifetime import die_with_parent

if __name__ == "__main__":
    die_with_parent()
    with interrupt_ends_at_once():
        from atb_models.launcher.main import main

    sys.exit(main())
