"""Environment variables that this program sets for its ranks and the libraries."""

from __future__ import annotations

import os
from collections.abc import Mapping


def export_defaults(values: Mapping[str, str]) -> None:
    """Export what the user did not; atb_models then does not tell the user of these as set without effect."""
    ours = [name for name in values if not os.environ.get(name)]
    os.environ.update({name: values[name] for name in ours})
    os.environ["ATB_LAUNCHER_DEFAULTS"] = " ".join([os.environ.get("ATB_LAUNCHER_DEFAULTS", ""), *ours]).strip()
