"""Where this run's result files go, looked at before a model is loaded for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from atb_models import env
from atb_models.files import EXPERT_COUNTS_FOLDER, check_file, check_folder
from atb_models.launcher.benchmark import DEFAULT_FILE

PROFILE_FILES = ("profile.json", "trace.json")

# Switch, variable of the place, the place where it is unset, the check.
_RESULTS: tuple[tuple[str, str, Path, Callable[[Path, str], None]], ...] = (
    ("ATB_LLM_BENCHMARK_ENABLE", "ATB_LLM_BENCHMARK_FILEPATH", DEFAULT_FILE, check_file),
    ("ATB_LLM_LOGITS_SAVE_ENABLE", "ATB_LLM_LOGITS_SAVE_FOLDER", Path(), check_folder),
    ("ATB_LLM_TOKEN_IDS_SAVE_ENABLE", "ATB_LLM_TOKEN_IDS_SAVE_FOLDER", Path(), check_folder),
    ("MINDIE_ENABLE_EXPERT_HOTPOT_GATHER", "MINDIE_EXPERT_HOTPOT_DUMP_PATH", EXPERT_COUNTS_FOLDER, check_folder),
)


def check_results(*, profile: bool = False) -> None:
    """Raises ConfigError, with the variable and the absolute path, for results that are asked for but have no place."""
    for name in PROFILE_FILES if profile else ():
        check_file(env.get("PROFILING_FILEPATH") / name, "PROFILING_FILEPATH")
    for switch, variable, default, check in _RESULTS:
        if env.get(switch):
            check(env.get(variable) or default, variable)
