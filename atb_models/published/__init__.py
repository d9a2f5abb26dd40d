"""The config.json of published models, so that a plan needs no download: one folder for each, as ORGANISATION/NAME.

A file holds the fields that decide a model's size and mathematics; ids of tokens and settings of training are left out.
Their source is the config.json of the repository of this name on Hugging Face, see `source`.
"""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

_HERE = Path(__file__).parent
NAMES = tuple(sorted((f"{path.parts[-3]}/{path.parts[-2]}" for path in _HERE.glob("*/*/config.json")), key=str.lower))


def full_name(typed: str) -> str | None:
    """The one of NAMES that is meant: typed in full or as its last part, in any letter case; None: no such model."""
    words = typed.lower()
    return next((name for name in NAMES if words in (name.lower(), _last(name))), None)


def similar_names(typed: str) -> list[str]:
    """At most three of NAMES whose last part is like that of `typed`: those that begin so, then the closest others."""
    last, by_last = _last(typed.rstrip("/")), {_last(name): name for name in NAMES}
    beginning = [one for one in by_last if last and one.startswith(last)]
    return [by_last[one] for one in dict.fromkeys([*beginning, *get_close_matches(last, by_last)])][:3]


def folder_of(name: str) -> Path:
    """The folder that holds the config.json of one of NAMES, and nothing else."""
    return _HERE / name


def source(name: str) -> str:
    """Where the config.json of one of NAMES was published."""
    return f"https://huggingface.co/{name}/blob/main/config.json"


def _last(name: str) -> str:
    return name.rsplit("/", 1)[-1].lower()
