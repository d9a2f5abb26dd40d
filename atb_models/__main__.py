"""`python -m atb_models` is the command `atb-models`."""

import sys

if __name__ == "__main__":
    from atb_models.cli import main

    sys.exit(main())
