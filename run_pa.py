"""The launcher: `python run_pa.py --model_path WEIGHTS [flags]`, alone or under torchrun. `--help` lists the flags."""

import sys

from atb_models.command.interrupt import interrupt_ends_at_once
from atb_models.ranks.lifetime import die_with_parent

if __name__ == "__main__":
    die_with_parent()  # a rank of torchrun, before the imports that take time
    with interrupt_ends_at_once():
        from atb_models.launcher.main import main

    sys.exit(main())
